"""Numbers that are above zero and sum to one along the last axis of a row."""

from __future__ import annotations

import math
from typing import final

import numpy as np

from worker.nn.layers.layer import Layer, Layout, Setting
from worker.nn.layers.pieces import cuts
from worker.nn.parameters import Array
from worker.nn.shapes import BLOCK_FLOATS
from worker.nn.streams import Streams
from worker.specs import SoftmaxRecord


@final
class Softmax(Layer):
    """y = e / sum of e, e = exp(x - m), m the largest x, along a row's last axis K; nothing overflows (Bridle 1990).

    Shapes: x, y (S, K, R) for rows of one axis, sums running down the rows; else (S, R, ..., K) as N positions (N, K).
    Backward: dx = y (dy - sum of y dy).
    Raises UserError if x has not the shape it was built for.
    """

    keeps_output = True

    def __init__(self, record: SoftmaxRecord, setting: Setting) -> None:
        super().__init__(setting)
        row = setting.shapes.input_shape
        if setting.layout is Layout.ROWS_LAST:
            self.view: tuple[int, ...] = self.input_shape
            one: tuple[int, ...] = (setting.shards, 1, setting.rows)
        else:
            self.view = (setting.shards * setting.rows * math.prod(row[:-1]), row[-1])
            one = (self.view[0], 1)
        # Whole shards, or whole positions: no sum is cut.
        step = max(1, BLOCK_FLOATS // math.prod(self.view[1:]))
        self.blocks = cuts(self.view[0], step)
        self.y = setting.memory.output(self.output_shape)
        self.one = (min(step, one[0]), *one[1:])
        # The largest of each sum, then the sum.
        self.forward_one = setting.memory.forward_scratch(self.one)
        self.spread = setting.memory.forward_scratch((self.one[0], *self.view[1:]))

    @classmethod
    def layout(cls, record: SoftmaxRecord, row: tuple[int, ...]) -> Layout | None:
        return Layout.ROWS_LAST if len(row) == 1 else Layout.ROWS_FIRST

    def prepare_backward(self, dy: Array) -> Array:
        memory = self.setting.memory
        self.backward_one = memory.backward_scratch(self.one)
        self.product = memory.backward_scratch((self.one[0], *self.view[1:]))
        self.dx = dy if self.setting.may_overwrite_gradient else memory.input_gradient(self.input_shape)
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        x_view, y_view = x.reshape(self.view), self.y.reshape(self.view)
        for block in self.blocks:
            size = block.stop - block.start
            y, spread, one = y_view[block], self.spread[:size], self.forward_one[:size]
            np.maximum.reduce(x_view[block], axis=1, out=one, keepdims=True)
            # Spread out first: NumPy would do so itself, into memory that it allocates.
            np.copyto(spread, one)
            np.subtract(x_view[block], spread, out=y)
            np.exp(y, out=y)
            np.add.reduce(y, axis=1, out=one, keepdims=True)
            np.copyto(spread, one)
            np.divide(y, spread, out=y)
        return self.y

    def backward(self, dy: Array) -> Array:
        y_view, dy_view, dx_view = self.y.reshape(self.view), dy.reshape(self.view), self.dx.reshape(self.view)
        for block in self.blocks:
            size = block.stop - block.start
            y, dx, product, one = y_view[block], dx_view[block], self.product[:size], self.backward_one[:size]
            np.multiply(y, dy_view[block], out=product)
            np.add.reduce(product, axis=1, out=one, keepdims=True)
            np.copyto(product, one)
            np.subtract(dy_view[block], product, out=dx)
            np.multiply(dx, y, out=dx)
        return self.dx
