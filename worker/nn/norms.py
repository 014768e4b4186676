"""Norms of the learned tensors: sums of squares over blocks, in float64, and their totals, always in the same order."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from worker.nn.parameters import Array
from worker.nn.shapes import NORM_BLOCK, ParameterLayout

# The sum of squares of each block, (vectors, blocks).
Sums: TypeAlias = NDArray[np.float64]


@final
class Norms:
    """The sums of squares of all blocks, for passes of an update that leave `rows[number]` vectors measured.

    A block begins at each learned tensor and every NORM_BLOCK floats in it; none reaches into another tensor or a gap. Its sum
    is a function of its floats alone, so that it does not matter who measures it.
    """

    def __init__(self, layout: ParameterLayout, rows: Sequence[int]) -> None:
        learned = [entry for entry in layout.entries if entry.offset < layout.learned]
        self.rows = tuple(rows)
        self._offsets = [entry.offset for entry in learned]
        # Of each block: where it begins, and its floats.
        self._starts = [at for entry in learned for at in range(entry.offset, entry.offset + entry.size, NORM_BLOCK)]
        self._floats = [min(NORM_BLOCK, entry.size - at) for entry in learned for at in range(0, entry.size, NORM_BLOCK)]
        self.blocks = len(self._starts)
        # Of each tensor, its blocks.
        self._ranges = [self.range_of(entry.offset, entry.offset + entry.size) for entry in learned]
        self._sums: Sequence[Sums] = [np.zeros((count, self.blocks)) for count in self.rows]
        self._squares = np.zeros(NORM_BLOCK)

    def range_of(self, first: int, end: int) -> tuple[int, int]:
        """The blocks that begin in [first, end) of the flat vector: the first one, and one past the last."""
        return bisect_left(self._starts, first), bisect_left(self._starts, end)

    def share(self, sums: Sequence[Sums]) -> None:
        """From now on the sums lie here, (rows[number], blocks) for each pass: in memory that several workers fill."""
        self._sums = sums

    def measure(self, number: int, row: int, first: int, vector: Array) -> None:
        """Sums the squares of `vector`, which lies from `first` on, as vector `row` of a pass. No block crosses its ends."""
        sums = self._sums[number][row]
        for block in range(*self.range_of(first, first + len(vector))):
            at, floats = self._starts[block] - first, self._floats[block]
            squares = self._squares[:floats]
            np.copyto(squares, vector[at : at + floats])
            np.multiply(squares, squares, out=squares)
            sums[block] = np.add.reduce(squares)

    def total(self, number: int, row: int) -> float:
        """The sum of squares over all learned tensors."""
        return float(np.add.reduce(self._sums[number][row]))

    def tensor_total(self, number: int, row: int, tensor: int) -> float:
        """The sum of squares over a tensor, which is counted in the order of the flat vector."""
        return float(np.add.reduce(self._sums[number][row, slice(*self._ranges[tensor])]))

    def tensor_at(self, first: int) -> int:
        """The tensor in which a place of the flat vector lies."""
        return bisect_right(self._offsets, first) - 1
