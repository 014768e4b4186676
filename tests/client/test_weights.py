"""The hash of weights, from tensors and from a file; and that a damaged file is never hashed."""

from __future__ import annotations

import hashlib
import json
import struct
from array import array
from pathlib import Path
from typing import Any

import pytest

from lockstep.contract.errors import UserError
from lockstep.contract.weights import weights_sha256, weights_sha256_of_file

TENSORS = {"1.dense.weight": [1.0, 2.0, 3.0, 4.0], "0.dense.bias": [0.5], "10.é": [-0.0], "0.empty": []}


def floats(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def safetensors(tensors: dict[str, list[float]], **changes: Any) -> bytes:
    """A safetensors file whose data lie in the order given."""
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    at = 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [at, at + 4 * len(values)]}
        at += 4 * len(values)
    header["0.dense.bias"].update(changes)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(map(floats, tensors.values()))


def test_the_hash_is_over_the_bytes_in_the_order_of_the_names() -> None:
    expected = hashlib.sha256(floats([0.5, 1.0, 2.0, 3.0, 4.0, -0.0])).hexdigest()
    assert weights_sha256((name, array("f", values)) for name, values in TENSORS.items()) == expected


def test_a_file_has_the_hash_of_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(TENSORS))
    assert weights_sha256_of_file(path) == weights_sha256((name, floats(values)) for name, values in TENSORS.items())


def test_a_name_comes_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        weights_sha256([("a", b""), ("a", b"")])


GOOD = safetensors(TENSORS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        GOOD[:7],
        GOOD[:40],
        GOOD[:-1],
        GOOD + b"\0",
        struct.pack("<Q", 2**63) + GOOD[8:],
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"\xff\xff",
        safetensors(TENSORS, dtype="F64"),
        safetensors(TENSORS, shape=[2]),
        safetensors(TENSORS, shape=[-1, -1]),
        safetensors(TENSORS, data_offsets=[0, 4]),
        safetensors(TENSORS, data_offsets=[16.0, 20.0]),
        safetensors(TENSORS, data_offsets=[20]),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        weights_sha256_of_file(path)
    assert caught.value.reason == "WEIGHTS_DAMAGED"
    assert str(path) in str(caught.value)
