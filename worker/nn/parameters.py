"""Flat vectors whose tensors are views: allocation aligned to 64 bytes, the engine's views and the public ones."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from worker.nn.shapes import ParameterLayout

# float32 in training, float64 in the gradient check.
Array: TypeAlias = NDArray[np.floating]

ALIGNMENT_BYTES = 64


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """A C-contiguous array of zeros that begins at a multiple of 64 bytes."""
    kind = np.dtype(dtype)
    size_bytes = kind.itemsize
    for size in shape:
        size_bytes *= size
    raw = np.zeros(size_bytes + ALIGNMENT_BYTES, np.uint8)
    first = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[first : first + size_bytes].view(kind).reshape(shape)


def internal_views(layout: ParameterLayout, flat: Array) -> dict[str, Array]:
    """The tensors as the engine computes with them; `flat` is (..., P), and its leading axes stay in front."""
    lead = flat.shape[:-1]
    return {
        entry.name: flat[..., entry.offset : entry.offset + entry.size].reshape(*lead, *entry.internal_shape)
        for entry in layout.entries
    }


def public_views(layout: ParameterLayout, flat: Array) -> dict[str, Array]:
    """The tensors of a flat vector (P,) in their public layout, as views: writing to them writes to `flat`."""
    internal = internal_views(layout, flat)
    return {entry.name: internal[entry.name].transpose(entry.axes) for entry in layout.entries}
