"""What an .npz archive becomes, and which archives are refused."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.contract.errors import count_of
from worker.data import npz_archive
from worker.data.columns import open_columns
from worker.data.dataset_writer import dataset_digest
from worker.rows import RowSource

from .conftest import Reading

X = np.arange(24, dtype=np.float32).reshape(6, 4)
Y = np.array([0, 1, 2, 0, 1, 2])


def archive_bytes(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def with_member(name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO(archive_bytes(**{"y" if name == "x" else "x": Y if name == "x" else X}))
    with zipfile.ZipFile(buffer, "a", method) as archive:
        archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def test_columns_hold_the_arrays(reading: Reading) -> None:
    dataset, folder = reading.arrays(x=X, y=Y)
    x, y = np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "y.npy", mmap_mode="r")
    assert x.dtype == np.float32 and x.flags.c_contiguous and np.array_equal(x, X)
    assert y.dtype == np.int64 and np.array_equal(y, Y)
    assert dataset["rows"] == 6 and dataset["input_shape"] == [4]
    assert dataset["target"] == {"classes": {"count": 3, "names": [], "rows": [2, 2, 2]}}
    assert dataset["columns"]["x"] == {"dtype": "float32", "shape": [6, 4], "sha256": hashlib.sha256(X.tobytes()).hexdigest()}
    assert dataset["digest"] == dataset_digest(dataset)
    assert sorted(os.listdir(folder)) == ["dataset.json", "x.npy", "y.npy"]


@pytest.mark.parametrize("shape", [(30, 4), (30, 2, 3, 2)])
def test_the_digest_is_that_of_the_values(reading: Reading, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    # Small blocks, so that every form crosses several of them.
    monkeypatch.setattr(npz_archive, "BLOCK_VALUES", 40)
    x = np.arange(np.prod(shape)).reshape(shape) % 100
    y = np.arange(30) % 3
    forms = [x.astype(dtype) for dtype in ("<f4", ">f4", "<f8", ">f8", "f2", "i1", "u1", ">i2", "<i8", ">u8")]
    forms += [np.asfortranarray(x.astype(dtype)) for dtype in ("<f4", ">f8", "i1")]
    digests = {reading.arrays(x=form, y=y)[0]["digest"] for form in forms}
    digests |= {reading.arrays(x=x, y=y.astype(dtype))[0]["digest"] for dtype in ("i1", ">i4", "u8")}
    assert len(digests) == 1
    assert np.array_equal(np.load(reading.arrays(x=forms[-2], y=y)[1] / "x.npy"), x)
    assert reading.arrays(x=x + 1, y=y)[0]["digest"] not in digests


def test_numbers_to_predict(reading: Reading) -> None:
    one, folder = reading.arrays(x=X, y=np.linspace(0, 1, 6))
    assert one["target"] == {"numbers": {"width": 1}} and np.load(folder / "y.npy").shape == (6, 1)
    three, folder = reading.arrays(x=X, y=np.arange(18.0).reshape(6, 3))
    assert three["target"] == {"numbers": {"width": 3}} and np.load(folder / "y.npy").dtype == np.float32


@pytest.mark.parametrize("dtype", ["u1", ">i2", "i8", "u8", "?"])
def test_whole_numbers_at_positions_are_labels_of_them(reading: Reading, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_archive, "BLOCK_VALUES", 7)
    y = (np.arange(18).reshape(6, 3) % 2).astype(dtype)
    dataset, folder = reading.arrays(x=X, y=np.asfortranarray(y))
    assert dataset["target"] == {"classes": {"count": 2, "names": [], "rows": [9, 9], "positions": 3}}
    stored = np.load(folder / "y.npy")
    assert stored.dtype == np.int64 and np.array_equal(stored, y)
    columns = open_columns(folder)
    assert np.array_equal(columns.y, y) and dataset["warnings"] == []


@pytest.mark.parametrize("nothing", [-1, -100])
def test_positions_without_a_label_and_labels_that_do_not_occur(reading: Reading, nothing: int) -> None:
    y = np.array([[0, 1, 5], [nothing, 1, nothing], [5, 5, 5]] * 2)
    dataset, folder = reading.arrays(x=X, y=y)
    target = {"count": 6, "names": [], "rows": [2, 4, 0, 0, 0, 8], "positions": 3, "no_label": nothing}
    assert dataset["target"] == {"classes": target} and np.array_equal(np.load(folder / "y.npy"), y)
    assert dataset["warnings"] == ["array y: 3 of the labels 0 to 5 stand at no position"]


def test_labels_of_positions_that_cannot_be_are_refused(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_archive, "BLOCK_VALUES", 6)
    y = np.arange(18).reshape(6, 3) % 2

    def violation(*changes: tuple[int, int, int]) -> tuple[str, str, str]:
        wrong = y.copy()
        for row, position, label in changes:
            wrong[row, position] = label
        (found,) = reading.refused(lambda: reading.arrays(x=X, y=wrong))
        assert found.remedy.endswith("if these are numbers to predict") or found.reason not in (
            "LABELS_NEGATIVE",
            "TOO_MANY_CLASSES",
        )
        return found.place, found.value, found.reason

    assert violation((4, 1, -2), (5, 1, -7)) == ("array y, position 1", "-2 in rows 4, 5", "LABELS_NEGATIVE")
    assert violation((0, 0, -1), (1, 0, -100)) == ("array y", "-1 and -100 among the labels", "LABELS_MIXED")
    assert violation((3, 2, 65_536)) == ("array y", "the label 65536", "TOO_MANY_CLASSES")
    for labels, value, reason in [(-1, "-1 at every position", "NO_LABELS"), (3, "the label 3 at every position", "ONE_CLASS")]:
        (found,) = reading.refused(lambda labels=labels: reading.arrays(x=X, y=np.full((6, 2), labels)))  # type: ignore[misc]
        assert (found.value, found.reason) == (value, reason)


@pytest.mark.parametrize("dtype", ["i4", "u8", "i8"])
def test_whole_numbers_as_inputs_are_kept_exactly_below_2_to_the_24(reading: Reading, dtype: str) -> None:
    tokens = np.array([[0, 1, 2**24 - 1], [2**24 - 2, 2**23 + 1, 7]], dtype)
    dataset, folder = reading.arrays(x=tokens, y=np.array([[0, 1, 2], [3, 4, 5]]))
    assert dataset["input_shape"] == [3] and dataset["warnings"] == []
    stored = np.load(folder / "x.npy")
    assert stored.dtype == np.float32 and np.array_equal(stored.astype(np.int64), tokens)
    # Workers see them as they are, unless the job asks for standardization.
    source = RowSource(open_columns(folder), None)
    x, y = source.buffers(2)
    source.gather(np.array([1, 0]), x, y)
    assert np.array_equal(x, tokens[::-1]) and y.tolist() == [[3, 4, 5], [0, 1, 2]]


def test_whole_numbers_that_are_rounded_are_a_warning(reading: Reading) -> None:
    dataset, _ = reading.arrays(x=np.array([[2**24, 1], [2**24 + 1, 2], [5, 3]]), y=np.array([0, 1, 1]))
    assert dataset["warnings"] == [
        "array x: whole numbers up to 16777217 are kept as float32, which holds those up to 16777216 exactly"
    ]


def test_whole_numbers_of_a_real_dtype_are_numbers_with_a_warning(reading: Reading) -> None:
    dataset, _ = reading.arrays(x=X, y=Y.astype(float))
    assert "numbers" in dataset["target"] and "write integers if they are classes" in dataset["warnings"][0]


def test_booleans_are_two_classes(reading: Reading) -> None:
    dataset, _ = reading.arrays(x=X > 5, y=Y > 0)
    assert dataset["target"]["classes"]["rows"] == [2, 4]


def test_a_64_bit_zip_member_is_read(reading: Reading) -> None:
    # savez always writes 64-bit sizes into the local header; the directory needs them beyond 4 GiB alone, so it is forced here.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in (("x", X), ("y", Y)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array)
        for info in archive.infolist():
            info.extra = b"\x01\x00\x10\x00" + info.file_size.to_bytes(8, "little") + info.compress_size.to_bytes(8, "little")
    content = buffer.getvalue()
    assert b"\xff\xff\xff\xff" in content
    assert reading.npz(content)[0]["digest"] == reading.arrays(x=X, y=Y)[0]["digest"]


def test_compressed_and_differently_named_arrays(reading: Reading) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=X, kinds=Y, extra=X)
    dataset, _ = reading.npz(buffer.getvalue(), inputs="images", labels="kinds")
    assert dataset["rows"] == 6 and dataset["warnings"] == ["other arrays of the file are not read: 'extra'"]


def test_constant_columns_are_a_warning(reading: Reading) -> None:
    x = X.copy()
    x[:, 2] = 5
    assert reading.arrays(x=x, y=Y)[0]["warnings"] == ["1 of 4 input columns never change and teach nothing: 2"]


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_object_arrays_are_refused_and_never_unpickled(reading: Reading) -> None:
    trap = reading.folder / "trap"
    assert b"mkdir" in pickle.dumps(Bomb(trap))
    for name in ("x", "y"):
        arrays: dict[str, NDArray[Any]] = {"x": X, "y": Y, name: np.array([Bomb(trap)] * 6, dtype=object)}
        (violation,) = reading.refused(lambda arrays=arrays: reading.arrays(**arrays))  # type: ignore[misc]
        assert violation.place == f"array {name}" and violation.reason == "ARRAY_OBJECTS"
    answer = reading.child(reading.upload(archive_bytes(x=np.array([Bomb(trap)], dtype=object), y=Y)), '{"npz": {}}')
    assert not answer["ok"] and not trap.exists()


def test_a_file_cut_short_is_damaged_with_sizes(reading: Reading) -> None:
    whole = archive_bytes(x=X, y=Y)
    for cut in (len(whole) // 3, len(whole) - 10):
        (violation,) = reading.refused(lambda cut=cut: reading.npz(whole[:cut]))  # type: ignore[misc]
        assert violation.reason == "ARCHIVE_DAMAGED" and f"{cut} bytes" in violation.value and "damaged" in violation.remedy
    assert "'x.npy' alone ends at byte" in reading.refused(lambda: reading.npz(whole[:100]))[0].value


def test_flipped_bytes_are_damage(reading: Reading) -> None:
    whole = bytearray(archive_bytes(x=X, y=Y))
    whole[whole.index(X.tobytes()) + 5] ^= 1
    (violation,) = reading.refused(lambda: reading.npz(bytes(whole)))
    assert violation.place == "array x" and violation.reason == "ARCHIVE_DAMAGED"


def test_headers_that_lie_are_refused_before_reading(reading: Reading) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 4)})
    (violation,) = reading.refused(lambda: reading.npz(with_member("x", header.getvalue() + bytes(64))))
    assert violation.reason == "ARCHIVE_DAMAGED" and "64 bytes of values" in violation.value
    for junk in (b"", b"junk", b"\x93NUMPY\x01\x00\x05\x00{'a':", b"\x93NUMPY\x09\x00" + bytes(100)):
        assert reading.refused(lambda junk=junk: reading.npz(with_member("x", junk)))[0].reason == "ARCHIVE_DAMAGED"  # type: ignore[misc]


def test_members_that_grow_too_much_are_refused_before_reading(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_archive, "COMPRESSION_RATIO_FLOOR_BYTES", 100_000)
    content = with_member("x", bytes(4_000_000), zipfile.ZIP_DEFLATED)
    assert reading.refused(lambda: reading.npz(content))[0].reason == "ARCHIVE_UNSAFE"
    monkeypatch.setattr(npz_archive, "MAX_COLUMN_BYTES", 1_000_000)
    assert reading.refused(lambda: reading.npz(content))[0].reason == "TOO_LARGE"
    assert reading.refused(lambda: reading.npz(with_member("x", b"a", zipfile.ZIP_LZMA)))[0].reason == "ARCHIVE_UNSAFE"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "NOT_AN_ARCHIVE"),
        (b"a,b\n1,2\n", "NOT_AN_ARCHIVE"),
        (b"\x93NUMPY\x01\x00", "NOT_AN_ARCHIVE"),
        (b"PK", "ARCHIVE_DAMAGED"),
    ],
)
def test_other_files_are_refused(reading: Reading, content: bytes, reason: str) -> None:
    assert reading.refused(lambda: reading.npz(content))[0].reason == reason


def test_missing_arrays_are_named_together(reading: Reading) -> None:
    violations = reading.refused(lambda: reading.arrays(a=X, b=Y))
    assert [violation.place for violation in violations] == ["array x", "array y"]
    assert "'a', 'b'" in violations[0].remedy


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (X, Y[:5], "ROWS_DIFFER"),
        (X[:0], Y[:0], "NO_ROWS"),
        (X[:, 0], Y, "ARRAY_SHAPE"),
        (X[:, :0], Y, "ARRAY_SHAPE"),
        (X, np.zeros((6, 2, 2)), "ARRAY_SHAPE"),
        (X, np.array(1), "ARRAY_SHAPE"),
        (X.astype(complex), Y, "ARRAY_TYPE"),
        (X, np.array(["a", "b"] * 3), "ARRAY_TYPE"),
        (np.zeros(6, [("a", "f4"), ("b", "f4")]), Y, "ARRAY_TYPE"),
        (X, Y - 1, "LABELS_NEGATIVE"),
        (X, Y + 1, "LABELS_GAP"),
        (X, Y * 96, "LABELS_GAP"),
        (X, Y * 0, "ONE_CLASS"),
        (X, Y * 0.0, "CONSTANT_LABEL"),
        (X[:1], Y[:1], "ONE_CLASS"),
        (X.astype(float) * 1e39, Y, "OUT_OF_RANGE"),
        (X, np.linspace(0, 1e300, 6), "OUT_OF_RANGE"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(reading: Reading, x: NDArray[Any], y: NDArray[Any], reason: str) -> None:
    violations = reading.refused(lambda: reading.arrays(x=x, y=y))
    assert {violation.reason for violation in violations} == {reason}


def test_labels_from_1_to_10_are_told_where_to_start(reading: Reading) -> None:
    (violation,) = reading.refused(lambda: reading.arrays(x=np.arange(40.0).reshape(20, 2), y=np.arange(20) % 10 + 1))
    assert violation.place == "array y" and violation.value == "labels 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
    assert violation.remedy.startswith("labels start at 0: subtract 1")


def test_what_is_not_finite_is_located(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_archive, "BLOCK_VALUES", 400)
    x = np.ones((10_000, 4)) * np.arange(10_000)[:, None]
    x[[7, 8, 9, 100, 5000, 9999], 1] = np.nan
    x[42, 3] = -np.inf
    y = np.linspace(0, 1, 10_000)
    y[3] = np.nan
    violations = reading.refused(lambda: reading.arrays(x=x, y=y))
    assert [violation.place for violation in violations] == ["array x, column 1", "array x, column 3", "array y"]
    assert violations[0].value == "nan in rows 7, 8, 9, 100, 5000 (6 in all)" and violations[1].value == "-inf in row 42"
    images = reading.refused(lambda: reading.arrays(x=x.reshape(-1, 2, 2), y=np.arange(10_000) % 2))
    assert images[0].place == "array x, column 0, 1"


def test_a_flood_of_faults_is_bounded(reading: Reading) -> None:
    violations = reading.refused(lambda: reading.arrays(x=np.full((3, 5000), np.nan), y=np.arange(3)))
    assert len(violations) == 21 and str(violations[-1]) == "and 4980 more" and count_of(violations) == 5000
