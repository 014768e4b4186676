"""Gradients of large weights, tile by tile: the shards' products of a tile are summed while they are in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias, final

import numpy as np

from worker.nn.combination import Subtree
from worker.nn.layers import Layer
from worker.nn.parameters import Array
from worker.nn.shapes import BLOCK_FLOATS

# What is called, and with what.
Call: TypeAlias = tuple[Callable[..., object], tuple[Any, ...]]

# A few tiles lie in the third-level cache together. What is not larger is one tile.
TILE_FLOATS = 1 << 20

# Rows of a tile come in multiples of the products' own tiles, and are never few: each product packs all of its other side.
ROWS = 64


def tile_borders(rows: int, columns: int) -> list[int]:
    """Where the tiles of a weight (rows, columns) begin, and its end: by its shape alone, for it decides bits."""
    step = rows if rows * columns <= TILE_FLOATS else max(ROWS, TILE_FLOATS // columns // ROWS * ROWS)
    return [*range(0, rows, step), rows]


def scratch_tiles(shapes: Sequence[tuple[int, ...]], nodes: Sequence[Subtree], dtype: np.dtype[Any]) -> list[Array]:
    """Room for the sums that wait: one tile of the largest of these weights for each level of the tree below a node."""
    largest = max((max(b - a for a, b in pairwise(tile_borders(*shape))) * shape[1] for shape in shapes), default=0)
    levels = max((end - first - 1).bit_length() for first, end in nodes)
    return [np.zeros(largest, dtype) for _ in range(levels if largest else 0)]


@final
class TiledSum:
    """The gradient of one tile of a weight (O, I) over the shards of one or two stacks, one sum for each node.

    `leaves` are the layer at its stack shape, and the number in its stack, of each shard. `out` (nodes, O, I) are the gradient
    vectors at the weight, of which the tile is the rows `tile`; `zeros` has a block's length.
    """

    def __init__(
        self,
        leaves: Sequence[tuple[Layer, int]],
        nodes: Sequence[Subtree],
        out: Array,
        tile: slice,
        scratch: Sequence[Array],
        zeros: Array,
    ) -> None:
        self._leaves, self._scratch = leaves, scratch
        # By node: products and sums, then the look for what is not finite.
        self._sums: list[tuple[list[Call], list[tuple[Array, Array]]]] = []
        for node, total in zip(nodes, out, strict=True):
            calls: list[Call] = []
            self._plan(calls, node, tile, total[tile], 0)
            flat = total[tile].reshape(-1)
            parts = [flat[at : at + BLOCK_FLOATS] for at in range(0, flat.size, BLOCK_FLOATS)]
            self._sums.append((calls, [(part, zeros[: len(part)]) for part in parts]))

    def _plan(self, calls: list[Call], node: Subtree, rows: slice, target: Array, level: int) -> None:
        """The sum of a node's shards into `target`: the left half first, the right half beside it."""
        first, end = node
        if end - first == 1:
            layer, shard = self._leaves[first]
            calls.append((layer.gradient_tile, (shard, rows, target)))
            return
        middle = (first + end) // 2
        self._plan(calls, (first, middle), rows, target, level)
        if middle < len(self._leaves):
            beside = self._scratch[level][: target.size].reshape(target.shape)
            self._plan(calls, (middle, end), rows, beside, level + 1)
            calls.append((np.add, (target, beside, target)))

    def run(self) -> bool:
        """Computes; False if a sum is not finite."""
        finite, dot = True, np.dot
        for calls, looks in self._sums:
            for call, arguments in calls:
                call(*arguments)
            # As for other sums: 0 times a number that is not finite is NaN.
            for vector, zeros in looks:
                finite &= bool(dot(vector, zeros) == 0)
        return finite
