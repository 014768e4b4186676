"""Standardization of inputs: fitted on the training rows in float64 by blocks along the tree, applied to gathered rows."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from worker.collective.tree import fold

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Training rows of a block of the fit.
FIT_BLOCK_ROWS = 4096


def fit_standardize(columns: F32, training_rows: NDArray[np.int64]) -> tuple[F64, F64]:
    """(mean, scale) of each input column of x (N, *input_shape) over `training_rows` (ascending), shaped like one row.

    scale = 1 / population standard deviation, 0 for a constant column. Two passes, each a sum of float64 blocks of 4,096
    rows along the binary tree; a block's sum is np.add.reduce over axis 0 of a C-contiguous array.
    """
    shape, rows = columns.shape[1:], len(training_rows)
    if rows == 0:
        raise ValueError("training_rows: got none; a fit needs at least one row")
    blocks = -(-rows // FIT_BLOCK_ROWS)

    def block(number: int) -> F64:
        chosen = training_rows[number * FIT_BLOCK_ROWS : (number + 1) * FIT_BLOCK_ROWS]
        return columns[chosen].reshape(len(chosen), -1).astype(np.float64)

    # A constant column is found by its values: its mean may be off by a rounding, and then its deviation is not 0.
    first_row = columns[training_rows[0]].reshape(-1)
    varies = np.zeros(first_row.shape, np.bool_)

    def sums(first: int, end: int) -> F64 | None:
        if end - first > 1:
            return None
        part = block(first)
        np.logical_or(varies, (part != first_row).any(axis=0), out=varies)
        return _column_sums(part)

    total = fold(0, blocks, sums, np.add)
    assert total is not None
    mean = total / rows

    def squares(first: int, end: int) -> F64 | None:
        if end - first > 1:
            return None
        deviation = block(first) - mean
        return _column_sums(deviation * deviation)

    total = fold(0, blocks, squares, np.add)
    assert total is not None
    deviation = np.sqrt(total / rows)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies & (deviation > 0))
    return mean.reshape(shape), scale.reshape(shape)


def _column_sums(block: F64) -> F64:
    sums: F64 = np.add.reduce(block, axis=0)
    return sums


@final
class Standardization:
    """x' = (x - float32(mean)) * float32(scale), in float32; a scale beyond float32 is its largest number."""

    def __init__(self, mean: F64, scale: F64) -> None:
        self._mean = mean.astype(np.float32)
        self._scale = np.minimum(scale, np.finfo(np.float32).max).astype(np.float32)

    def apply(self, x: F32) -> None:
        """Standardizes rows (..., *input_shape) in place."""
        np.subtract(x, self._mean, out=x)
        np.multiply(x, self._scale, out=x)
