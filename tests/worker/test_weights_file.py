"""Weights between files and flat vectors: what is written is what is read, and what does not fit is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.worker.worker_processes import order
from worker.nn.shapes import parameter_layout
from worker.specs import architecture
from worker.weights_file import WeightsUnreadable, flat_from_tensors, read_parameters, read_state, tensors_from_flat

LAYOUT = parameter_layout(architecture(order("", batch_size=1, shards=1, units=(5, 3)).spec.model, (7,)))


def flat() -> np.ndarray:
    """A vector whose tensors are drawn; the floats between them are zero."""
    made = np.zeros(LAYOUT.size, np.float32)
    draw = np.random.default_rng(2)
    for entry in LAYOUT.entries:
        made[entry.offset : entry.offset + entry.size] = draw.normal(size=entry.size)
    return made


def test_flat_to_tensors_and_back_is_the_same() -> None:
    tensors = tensors_from_flat(LAYOUT, flat())
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "0.dense.weight": (7, 5),
        "0.dense.bias": (5,),
        "2.dense.weight": (5, 3),
        "2.dense.bias": (3,),
    }
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())
    back = np.full(LAYOUT.size, np.nan, np.float32)
    flat_from_tensors(LAYOUT, tensors, back)
    assert back.tobytes() == flat().tobytes()


def test_files_hold_the_vectors(tmp_path: Path) -> None:
    tensors = tensors_from_flat(LAYOUT, flat())
    save_file(tensors, tmp_path / "model.safetensors")
    save_file({f"velocity/{name}": -tensor for name, tensor in tensors.items()}, tmp_path / "optimizer.safetensors")
    out = np.zeros(LAYOUT.size, np.float32)
    read_parameters(tmp_path, LAYOUT, out)
    assert out.tobytes() == flat().tobytes()
    assert (read_state(tmp_path, LAYOUT, ("velocity",))["velocity"] == -flat()).all()
    assert read_state(tmp_path / "nowhere", LAYOUT, ()) == {}


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    out = np.zeros(LAYOUT.size, np.float32)
    with pytest.raises(WeightsUnreadable, match="cannot be read"):
        read_parameters(tmp_path, LAYOUT, out)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(WeightsUnreadable, match="cannot be read"):
        read_parameters(tmp_path, LAYOUT, out)
    tensors = tensors_from_flat(LAYOUT, flat())
    changes: list[tuple[dict[str, np.ndarray], str]] = [
        ({**tensors, "9.dense.bias": tensors["0.dense.bias"]}, "not the model's: 9.dense.bias"),
        ({**tensors, "0.dense.weight": np.zeros((5, 7), np.float32)}, "0.dense.weight is float32"),
        ({**tensors, "0.dense.bias": np.zeros(5, np.float64)}, "0.dense.bias is float64"),
    ]
    for changed, text in changes:
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(WeightsUnreadable, match=text):
            read_parameters(tmp_path, LAYOUT, out)
