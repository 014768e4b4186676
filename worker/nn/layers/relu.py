"""The rectifier."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from worker.nn.layers.layer import Layer, Layout, Setting
from worker.nn.parameters import Array
from worker.nn.streams import Streams
from worker.specs import ReluRecord

# Numbers that are worked on at a time, so that the constants beside them stay in the cache.
PIECE = 1 << 15


def bits_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The integers of the same width."""
    return np.dtype(f"i{dtype.itemsize}")


def let_through(dy_bits: Array, y_bits: Array, ones: Array, room: Array, dx_bits: Array) -> None:
    """dx = dy where y is above 0, else 0, all of one shape and seen as integers; `room` and dx may be y and dy.

    As an integer, y is 0 where the rectifier was closed and above 0 where it was open; a product with 0 or 1 clears or keeps
    the bits of dy.
    """
    np.minimum(y_bits, ones, out=room)
    np.multiply(dy_bits, room, out=dx_bits)


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
        integers = bits_of(self.setting.dtype)
        self.ones = self.setting.memory.constant(self.piece, 1, integers)
        self.open = self.setting.memory.backward_scratch(self.piece if self.parts else (0,), integers)
        self.dx = self.room_for_input_gradient(dy)
        self.y_bits, self.dy_bits, self.dx_bits = (a.view(integers) for a in (self.y, dy, self.dx))
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
        if not self.parts:
            # y is not needed any more.
            let_through(self.dy_bits, self.y_bits, self.ones, self.y_bits, self.dx_bits)
            return self.dx
        bits, given, dx = self.y_bits.reshape(-1), self.dy_bits.reshape(-1), self.dx_bits.reshape(-1)
        for part in self.parts:
            own = bits[part]
            let_through(given[part], own, self.ones[: own.size], self.open[: own.size], dx[part])
        return self.dx
