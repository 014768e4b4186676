"""A dataset is compared with its digests: any bit of it that changed is seen, and files that are missing are another matter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator import dataset_check
from coordinator.dataset_check import DatasetDamaged, check_dataset
from coordinator.group.group import never
from tests.coordinator.small_job import write_dataset
from worker.data.columns import DatasetUnreadable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "datasets" / write_dataset(tmp_path)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_whole_dataset_passes(folder: Path) -> None:
    check_dataset(folder, never)


@pytest.mark.parametrize(("file", "at"), [("x.npy", 0), ("x.npy", 128), ("x.npy", -1), ("y.npy", 200), ("dataset.json", 20)])
def test_any_bit_that_changed_is_seen(folder: Path, file: str, at: int) -> None:
    flip(folder / file, at)
    with pytest.raises(DatasetDamaged, match=r"is not what was uploaded.*upload the same file again"):
        check_dataset(folder, never)


def test_a_description_of_other_values_is_not_believed(folder: Path) -> None:
    document = json.loads((folder / "dataset.json").read_text())
    document["columns"]["x"]["sha256"] = "0" * 64
    (folder / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(DatasetDamaged, match=r"dataset\.json has another digest"):
        check_dataset(folder, never)


@pytest.mark.parametrize("file", ["x.npy", "dataset.json"])
def test_a_missing_file_may_come_back(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(DatasetUnreadable, match="must see the data folder"):
        check_dataset(folder, never)


def test_a_run_that_is_cancelled_does_not_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_check, "_PIECE_BYTES", 64)
    flip(folder / "x.npy", -1)
    check_dataset(folder, lambda: True)
