"""The rectifier."""

from __future__ import annotations

from typing import final

import numpy as np

from worker.nn.layers.layer import Layer, Layout, Setting
from worker.nn.parameters import Array
from worker.nn.streams import Streams
from worker.specs import ReluRecord

# Numbers that are worked on at a time, so that the constants beside them stay in the cache.
PIECE = 1 << 15


@final
class Relu(Layer):
    """y = max(x, 0), elementwise; NaN stays NaN (Nair and Hinton 2010).

    Shapes: x, y (S, ..., R).
    Backward: dx = dy where y > 0, else 0.
    Raises UserError if x has not the shape it was built for.
    """

    keeps_output = True

    def __init__(self, record: ReluRecord, setting: Setting) -> None:
        super().__init__(setting)
        self.y = setting.x if setting.may_overwrite_input else setting.memory.output(self.output_shape)
        size = self.y.size
        self.parts = [slice(first, first + PIECE) for first in range(0, size, PIECE)] if size > PIECE else []
        # Full arrays: a maximum with a scalar is three times as slow.
        self.piece = (PIECE,) if self.parts else self.output_shape
        self.zeros = setting.memory.constant(self.piece, 0)

    @classmethod
    def layout(cls, record: ReluRecord, row: tuple[int, ...]) -> Layout | None:
        return None

    def prepare_backward(self, dy: Array) -> Array:
        # Seen as integers of the same width, y is 0 where the rectifier was closed and above 0 where it was open.
        self.integers = np.dtype(f"i{self.setting.dtype.itemsize}")
        self.y_bits = self.y.view(self.integers)
        self.ones = self.setting.memory.constant(self.piece, 1, self.integers)
        self.open = self.setting.memory.backward_scratch(self.piece if self.parts else (0,), self.integers)
        self.dx = self.room_for_input_gradient(dy)
        self.dy_bits, self.dx_bits = dy.view(self.integers), self.dx.view(self.integers)
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        if not self.parts:
            return np.maximum(x, self.zeros, out=self.y)
        given, y = x.reshape(-1), self.y.reshape(-1)
        for part in self.parts:
            own = y[part]
            np.maximum(given[part], self.zeros[: own.size], out=own)
        return self.y

    def backward(self, dy: Array) -> Array:
        # An integer product with 0 or 1 keeps or clears the bits of dy; y is not needed any more.
        if not self.parts:
            open_or_closed = np.minimum(self.y_bits, self.ones, out=self.y_bits)
            np.multiply(self.dy_bits, open_or_closed, out=self.dx_bits)
            return self.dx
        bits, given, dx = self.y_bits.reshape(-1), self.dy_bits.reshape(-1), self.dx_bits.reshape(-1)
        for part in self.parts:
            own = bits[part]
            open_or_closed = np.minimum(own, self.ones[: own.size], out=self.open[: own.size])
            np.multiply(given[part], open_or_closed, out=dx[part])
        return self.dx
