"""Tensors in files and in flat vectors: safetensors with the public layout on one side, the engine's layout on the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lockstep.contract.errors import LockstepError
from lockstep.contract.manifest import MODEL_FILE, OPTIMIZER_FILE
from worker.nn.parameters import public_views
from worker.nn.shapes import ParameterLayout

F32 = NDArray[np.float32]


@final
class WeightsUnreadable(LockstepError):
    """A file of weights is not there, or does not hold the tensors of this model."""


def tensors_from_flat(layout: ParameterLayout, flat: F32) -> dict[str, F32]:
    """The tensors of a flat vector (P,) by name, in the public layout, C-contiguous copies."""
    return {name: np.ascontiguousarray(view) for name, view in public_views(layout, flat).items()}


def flat_from_tensors(layout: ParameterLayout, tensors: Mapping[str, NDArray[Any]], out: F32) -> None:
    """Fills `out` (P,) from tensors in the public layout. Raises WeightsUnreadable for a missing, foreign or odd one."""
    views = public_views(layout, out)
    if views.keys() != tensors.keys():
        odd = ", ".join(sorted(views.keys() ^ tensors.keys())[:4])
        raise WeightsUnreadable(f"the tensors are not the model's: {odd}")
    out.fill(0)
    for name, view in views.items():
        tensor = tensors[name]
        if tensor.shape != view.shape or tensor.dtype != np.float32:
            raise WeightsUnreadable(f"{name} is {tensor.dtype} {tensor.shape}; the model has float32 {view.shape}")
        view[...] = tensor


def read_parameters(folder: Path, layout: ParameterLayout, out: F32) -> None:
    """Fills `out` (P,) from a checkpoint's model file. Raises WeightsUnreadable."""
    path = folder / MODEL_FILE
    _into(path, layout, _load(path), out)


def read_state(folder: Path, layout: ParameterLayout, names: tuple[str, ...]) -> dict[str, F32]:
    """The optimizer's flat vectors (P,) by name out of a checkpoint. Raises WeightsUnreadable."""
    if not names:
        return {}
    path = folder / OPTIMIZER_FILE
    tensors = _load(path)
    vectors = {}
    for name in names:
        prefix = f"{name}/"
        own = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        vectors[name] = np.zeros(layout.size, np.float32)
        _into(path, layout, own, vectors[name])
    return vectors


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsUnreadable(f"{path} cannot be read: {error}") from error


def _into(path: Path, layout: ParameterLayout, tensors: Mapping[str, NDArray[Any]], out: F32) -> None:
    try:
        flat_from_tensors(layout, tensors, out)
    except WeightsUnreadable as error:
        raise WeightsUnreadable(f"{path}: {error}") from error
