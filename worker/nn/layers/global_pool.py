"""Mean or maximum over all positions."""

from __future__ import annotations

import math
from typing import final

import numpy as np

from worker.nn.layers.layer import Layer, Layout, Setting
from worker.nn.parameters import Array
from worker.nn.streams import Streams
from worker.specs import GlobalMaxRecord, GlobalMeanRecord


class _GlobalPool(Layer):
    """Arrays as x (S, A, P, B), P positions, and y (S, A, B): A is 1 and B is C R with rows last, else R and C."""

    def __init__(self, record: GlobalMeanRecord | GlobalMaxRecord, setting: Setting) -> None:
        super().__init__(setting)
        *positions, channels = setting.shapes.input_shape
        self.positions = math.prod(positions)
        a, b = (1, channels * setting.rows) if setting.layout is Layout.ROWS_LAST else (setting.rows, channels)
        self.full, self.pooled = (setting.shards, a, self.positions, b), (setting.shards, a, b)
        self.y = setting.memory.output(self.output_shape)
        self.y_SAB = self.y.reshape(self.pooled)

    @classmethod
    def layout(cls, record: GlobalMeanRecord | GlobalMaxRecord, row: tuple[int, ...]) -> Layout | None:
        return None


@final
class GlobalMean(_GlobalPool):
    """y = the mean of x over all positions, per channel (Lin et al. 2014).

    Shapes: x (S, ..., C, R), y (S, C, R); or rows first, (S, R, ..., C) and (S, R, C).
    Backward: dx = dy / positions, at each position.
    Raises UserError if x has not the shape it was built for.
    """

    def __init__(self, record: GlobalMeanRecord, setting: Setting) -> None:
        super().__init__(record, setting)
        self.count = np.full((), self.positions, setting.dtype)

    def prepare_backward(self, dy: Array) -> Array:
        if not self.setting.needs_input_gradient:
            return dy
        self.dx = self.setting.memory.input_gradient(self.input_shape)
        self.dx_SAPB, self.dy_SAB = self.dx.reshape(self.full), dy.reshape(self.pooled)
        self.share_SAB = self.setting.memory.backward_scratch(self.pooled)
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        np.add.reduce(x.reshape(self.full), axis=2, out=self.y_SAB)
        np.divide(self.y_SAB, self.count, out=self.y_SAB)
        return self.y

    def backward(self, dy: Array) -> Array:
        if not self.setting.needs_input_gradient:
            return dy
        np.divide(self.dy_SAB, self.count, out=self.share_SAB)
        np.copyto(self.dx_SAPB, self.share_SAB[:, :, None])
        return self.dx


@final
class GlobalMax(_GlobalPool):
    """y = the maximum of x over all positions, per channel; NaN stays NaN (Oquab et al. 2015).

    Shapes: x (S, ..., C, R), y (S, C, R); or rows first, (S, R, ..., C) and (S, R, C).
    Backward: dy goes to the first position, in C order, whose x is not less than y.
    Raises UserError if x has not the shape it was built for.
    """

    keeps_input = True
    keeps_output = True

    def prepare_backward(self, dy: Array) -> Array:
        setting = self.setting
        if not setting.needs_input_gradient:
            return dy
        integers, (_, *one) = np.dtype(f"i{setting.dtype.itemsize}"), self.full
        self.dx = setting.memory.input_gradient(self.input_shape)
        # Seen as integers of the same width, a product with 0 or 1 clears or keeps a number's bits.
        self.dx_bits = self.dx.reshape(self.full).view(integers)
        self.dy_bits = dy.reshape(self.pooled).view(integers)
        # Positions from the last, 1, to the first; one shard is worked on at a time.
        self.rank_P1 = np.arange(self.positions, 0, -1).astype(integers)[:, None]
        self.wins_APB = setting.memory.backward_scratch(tuple(one), np.dtype(bool))
        self.ranks_APB = setting.memory.backward_scratch(tuple(one), integers)
        # What is the same at all positions is spread over them first: NumPy would do so itself, into memory that it allocates.
        self.spread_APB = setting.memory.backward_scratch(tuple(one), integers)
        self.best_AB = setting.memory.backward_scratch((one[0], one[2]), integers)
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        # A first layer's x is another array in each pass.
        self.x_SAPB = x.reshape(self.full)
        np.maximum.reduce(self.x_SAPB, axis=2, out=self.y_SAB)
        return self.y

    def backward(self, dy: Array) -> Array:
        if not self.setting.needs_input_gradient:
            return dy
        wins, ranks, spread, best = self.wins_APB, self.ranks_APB, self.spread_APB, self.best_AB
        y_spread = spread.view(self.setting.dtype)
        for x, y, dy_bits, dx_bits in zip(self.x_SAPB, self.y_SAB, self.dy_bits, self.dx_bits, strict=True):
            np.copyto(y_spread, y[:, None])
            np.less(x, y_spread, out=wins)
            np.logical_not(wins, out=wins)
            np.copyto(ranks, wins)
            np.copyto(spread, self.rank_P1)
            np.multiply(ranks, spread, out=ranks)
            np.maximum.reduce(ranks, axis=1, out=best)
            np.copyto(spread, best[:, None])
            np.equal(ranks, spread, out=wins)
            np.copyto(ranks, wins)
            np.copyto(spread, dy_bits[:, None])
            np.multiply(ranks, spread, out=dx_bits)
        return self.dx
