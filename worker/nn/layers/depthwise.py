"""Convolution with one filter for each channel."""

from __future__ import annotations

from typing import final

import numpy as np

from worker.nn.layers.layer import Setting
from worker.nn.layers.windows import Tap, Tile, add_to, tiles
from worker.nn.parameters import Array
from worker.nn.shapes.convolution import Windows


@final
class Depthwise:
    """A convolution with as many groups as channels, each of one filter: elementwise, tap by tap, a tile of windows at a time.

    What a tap reads, and its weights, are spread out first, so that all products and sums run over contiguous numbers.
    Shapes: x (S, H, W, C, R), W (C, kw, kh, 1), y (S, H', W', C, R).
    Backward: dW[t] = sum over o of dy[o] x[o stride + t dilation - before], dx[o stride + t dilation - before] += W[t] dy[o].
    """

    def __init__(self, setting: Setting, x: Array, y: Array, weight: Array, down: Windows, across: Windows) -> None:
        self.memory, self.x, self.y = setting.memory, x, y
        shards, _, _, channels, rows = y.shape
        self.W_IJC1 = weight.transpose(2, 1, 0, 3)
        self.W_IJCR = setting.memory.forward_scratch((down.taps, across.taps, channels, rows))
        self.tiles = list(tiles(shards, down, across, channels * rows))
        self.largest = max(y[(tile.shards, *tile.windows)].size for tile in self.tiles)
        self.room = setting.memory.forward_scratch((2, self.largest))

    def _gather(self, tile: Tile, tap: Tap, into: Array) -> None:
        """x where a tap of each window lies, 0 where that is outside, to (s, h, w, C, R)."""
        if not tap.whole:
            into.fill(0)
        np.copyto(into[(slice(None), *tap.windows)], self.x[(tile.shards, *tap.places)])

    def forward(self) -> None:
        np.copyto(self.W_IJCR, self.W_IJC1)
        for tile in self.tiles:
            y = self.y[(tile.shards, *tile.windows)]
            flat, (read, spread) = y.reshape(-1), (room[: y.size] for room in self.room)
            y.fill(0)
            for tap in tile.taps:
                self._gather(tile, tap, read.reshape(y.shape))
                np.copyto(spread.reshape(y.shape), self.W_IJCR[tap.number])
                np.multiply(read, spread, out=read)
                np.add(flat, read, out=flat)

    def prepare_backward(self, dy: Array, dx: Array | None, dW: Array) -> None:
        get, (shards, _, _, channels, rows) = self.memory.backward_scratch, dy.shape
        self.dy, self.dx = dy, dx
        self.dW_SIJC = dW[..., 0].transpose(0, 3, 2, 1)
        down, across = self.dW_SIJC.shape[1:3]
        self.W_back = get((down, across, channels, rows))
        self.sum = get((shards, down, across, channels * rows))
        self.dW_ST = get((shards, down * across * channels))
        self.ones_R = self.memory.constant((rows,), 1)
        self.part = get((max(tile.shards.stop - tile.shards.start for tile in self.tiles), channels * rows))
        self.back = get((3, self.largest))

    def backward(self) -> None:
        self.sum.fill(0)
        np.copyto(self.W_back, self.W_IJC1)
        if self.dx is not None:
            self.dx.fill(0)
        for tile in self.tiles:
            dy = self.dy[(tile.shards, *tile.windows)]
            for tap in tile.taps:
                self._filter_gradient(tile, tap, dy)
                if self.dx is not None:
                    self._input_gradient(tap, dy, self.dx[(tile.shards, *tap.places)])
        np.matmul(self.sum.reshape(len(self.sum), -1, len(self.ones_R)), self.ones_R, out=self.dW_ST)
        np.copyto(self.dW_SIJC, self.dW_ST.reshape(self.dW_SIJC.shape))

    def _filter_gradient(self, tile: Tile, tap: Tap, dy: Array) -> None:
        read, shards = self.back[0, : dy.size], len(dy)
        self._gather(tile, tap, read.reshape(dy.shape))
        np.multiply(dy.reshape(-1), read, out=read)
        part = self.part[:shards]
        np.add.reduce(read.reshape(shards, -1, part.shape[1]), axis=1, out=part)
        for total, own in zip(self.sum[(tile.shards, *tap.number)], part, strict=True):
            np.add(total, own, out=total)

    def _input_gradient(self, tap: Tap, dy: Array, dx: Array) -> None:
        product = self.back[0]
        shaped = product[: dy.size].reshape(dy.shape)
        np.copyto(shaped, self.W_back[tap.number])
        np.multiply(dy.reshape(-1), product[: dy.size], out=product[: dy.size])
        add_to(dx, shaped[(slice(None), *tap.windows)], self.back[1:])
