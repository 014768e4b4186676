"""Gradients of large weights, tile by tile: the shards' products of a tile are summed while they are in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias, final

import numpy as np

from worker.nn.combination import Subtree, all_finite, evaluate
from worker.nn.layers import Layer
from worker.nn.parameters import Array, aligned_zeros
from worker.nn.shapes import TILE_FLOATS, TILE_ROWS

# What is called, and with what.
Call: TypeAlias = tuple[Callable[..., object], tuple[Any, ...]]


def tile_borders(rows: int, columns: int) -> list[int]:
    """Where the tiles of a weight (rows, columns) begin, and its end: by its shape alone, for it decides bits."""
    step = rows if rows * columns <= TILE_FLOATS else max(TILE_ROWS, TILE_FLOATS // columns // TILE_ROWS * TILE_ROWS)
    return [*range(0, rows, step), rows]


def scratch_tiles(shapes: Sequence[tuple[int, ...]], nodes: Sequence[Subtree], dtype: np.dtype[Any]) -> list[Array]:
    """Room for the sums that wait: one tile of the largest of these weights for each level of the tree below a node."""
    largest = max((max(b - a for a, b in pairwise(tile_borders(*shape))) * shape[1] for shape in shapes), default=0)
    levels = max((end - first - 1).bit_length() for first, end in nodes)
    return [aligned_zeros((largest,), dtype) for _ in range(levels if largest else 0)]


@final
class TiledSum:
    """The gradient of one tile of a weight (O, I) over the shards of one or two stacks, one sum for each node.

    `leaves` are the layer at its stack shape, and the number in its stack, of each shard. `out` (nodes, O, I) are the gradient
    vectors at the weight, of which the tile is the rows `tile`.
    """

    def __init__(
        self, leaves: Sequence[tuple[Layer, int]], nodes: Sequence[Subtree], out: Array, tile: slice, scratch: Sequence[Array]
    ) -> None:
        self._leaves, self._scratch, self._tile = leaves, scratch, tile
        self._like = out[0, tile]
        # By node: products and sums, then the look for what is not finite.
        self._sums = [
            (self._plan(node, tile, total[tile]), total[tile].reshape(-1)) for node, total in zip(nodes, out, strict=True)
        ]

    def _plan(self, node: Subtree, rows: slice, target: Array) -> list[Call]:
        """The sum of a node's shards into `target`, which the first product is written to; others wait beside it."""
        calls: list[Call] = []
        free = [*(tile[: target.size].reshape(target.shape) for tile in self._scratch), target]

        def leaf(number: int) -> Array:
            (layer, shard), product = self._leaves[number], free.pop()
            calls.append((layer.gradient_tile, (shard, rows, product)))
            return product

        def add(left: Array, right: Array, top: bool) -> Array:
            calls.append((np.add, (left, right, left)))
            free.append(right)
            return left

        evaluate(node, len(self._leaves), leaf, add)
        return calls

    def run(self) -> bool:
        """Computes; False if a sum is not finite."""
        finite = True
        for calls, total in self._sums:
            for call, arguments in calls:
                call(*arguments)
            finite &= all_finite((total,))
        return finite

    def shards_not_finite(self) -> list[int]:
        """The shards whose own product is not finite; allocates one tile: for use after `run` said False."""
        product, shards = aligned_zeros(self._like.shape, self._like.dtype), []
        for number, (layer, shard) in enumerate(self._leaves):
            layer.gradient_tile(shard, self._tile, product)
            if not all_finite((product.reshape(-1),)):
                shards.append(number)
        return shards
