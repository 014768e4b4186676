"""The rectifier."""

from __future__ import annotations

from typing import final

import numpy as np

from worker.nn.layers.layer import Layer, Setting
from worker.nn.parameters import Array
from worker.nn.streams import Streams
from worker.specs import ReluRecord


@final
class Relu(Layer):
    """y = max(x, 0), elementwise; NaN stays NaN (Nair and Hinton 2010).

    Shapes: x, y (S, ..., R).
    Backward: dx = dy where y > 0, else 0.
    Raises UserError if x has not the shape it was built for.
    """

    def __init__(self, record: ReluRecord, setting: Setting) -> None:
        super().__init__(setting)
        self.y = self.buffer(self.output_shape) if setting.reuse is None else setting.reuse
        # Full arrays: a maximum with a scalar is three times as slow.
        self.zeros = self.buffer(self.output_shape)
        if setting.gradients is not None:
            # Seen as integers of the same width, y is 0 where the rectifier was closed and above 0 where it was open.
            self.integers = np.dtype(f"i{setting.dtype.itemsize}")
            self.y_bits = self.y.view(self.integers)
            self.ones = np.ones(self.output_shape, self.integers)

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        return np.maximum(x, self.zeros, out=self.y)

    def backward(self, dy: Array) -> Array:
        # An integer product with 0 or 1 keeps or clears the bits of dy; y is not needed any more.
        open_or_closed = np.minimum(self.y_bits, self.ones, out=self.y_bits)
        dy_bits = dy.view(self.integers)
        np.multiply(dy_bits, open_or_closed, out=dy_bits)
        return dy
