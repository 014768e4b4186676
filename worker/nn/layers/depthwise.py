"""Convolution with one filter for each channel."""

from __future__ import annotations

from typing import TypeAlias, final

import numpy as np

from worker.nn.layers.layer import Setting
from worker.nn.layers.windows import Tap, Tile, tiles
from worker.nn.parameters import Array
from worker.nn.shapes.convolution import Windows

# Shards, rows and columns of an image.
Place: TypeAlias = tuple[slice, slice, slice]


@final
class Depthwise:
    """A convolution with as many groups as channels, each of one filter: elementwise, tap by tap, a tile of windows at a time.

    Shapes: x (S, H, W, C, R), W (C, kw, kh, 1), y (S, H', W', C, R).
    Backward: dW[t] = sum over o of dy[o] x[o stride + t dilation - before], dx[o stride + t dilation - before] += W[t] dy[o].
    """

    def __init__(self, setting: Setting, x: Array, y: Array, weight: Array, down: Windows, across: Windows) -> None:
        self.memory, self.zero = setting.memory, np.zeros((), setting.dtype)
        shards, _, _, channels, rows = y.shape
        self.x, self.y = x, y
        self.W_IJC1 = weight.transpose(2, 1, 0, 3)
        self.W_IJCR = setting.memory.forward_scratch((down.taps, across.taps, channels, rows))
        self.tiles = list(tiles(shards, down, across, channels * rows))
        self.scratch = setting.memory.forward_scratch((self._largest(),))
        self.steps = [(tile, [self._views(tile, tap, y, self.scratch) for tap in tile.taps]) for tile in self.tiles]

    def _largest(self) -> int:
        return max(self.y[(tile.shards, *tile.windows)].size for tile in self.tiles)

    @staticmethod
    def _views(tile: Tile, tap: Tap, y: Array, scratch: Array) -> tuple[Array, Place, Array, tuple[int, int]]:
        """y as one tap sees it, where x lies that it reads, as many numbers of scratch, and the tap."""
        out = y[(tile.shards, *tile.windows)][(slice(None), *tap.windows)]
        return out, (tile.shards, *tap.places), scratch[: out.size].reshape(out.shape), tap.number

    def forward(self) -> None:
        np.copyto(self.W_IJCR, self.W_IJC1)
        for tile, taps in self.steps:
            np.copyto(self.y[(tile.shards, *tile.windows)], self.zero)
            for y, place, scratch, number in taps:
                np.multiply(self.x[place], self.W_IJCR[number], out=scratch)
                np.add(y, scratch, out=y)

    def prepare_backward(self, dy: Array, dx: Array | None, dW: Array) -> None:
        get, (shards, _, _, channels, rows) = self.memory.backward_scratch, dy.shape
        scratch = get((self._largest(),))
        self.dx = dx
        self.dW_SIJC = dW[..., 0].transpose(0, 3, 2, 1)
        down, across = self.dW_SIJC.shape[1:3]
        self.W_back = get((down, across, channels, rows))
        self.sum = get((shards, down, across, channels * rows))
        self.sum_STR = self.sum.reshape(shards, -1, rows)
        self.dW_ST = get((shards, down * across * channels))
        self.ones_R = self.memory.constant((rows,), 1)
        stacked = max(tile.shards.stop - tile.shards.start for tile in self.tiles)
        part = get((stacked, channels * rows))
        self.back = []
        for tile in self.tiles:
            for tap in tile.taps:
                out, place, product, number = self._views(tile, tap, dy, scratch)
                to = None if dx is None else dx[place]
                flat = product.reshape(len(product), -1, channels * rows)
                total = self.sum[(tile.shards, *number)]
                self.back.append((out, place, to, product, flat, part[: len(flat)], total, number))

    def backward(self) -> None:
        np.copyto(self.sum, self.zero)
        np.copyto(self.W_back, self.W_IJC1)
        if self.dx is not None:
            np.copyto(self.dx, self.zero)
        for dy, place, dx, product, flat, part, total, number in self.back:
            np.multiply(dy, self.x[place], out=product)
            np.add.reduce(flat, axis=1, out=part)
            np.add(total, part, out=total)
            if dx is not None:
                np.multiply(dy, self.W_back[number], out=product)
                np.add(dx, product, out=dx)
        np.matmul(self.sum_STR, self.ones_R, out=self.dW_ST)
        np.copyto(self.dW_SIJC, self.dW_ST.reshape(self.dW_SIJC.shape))
