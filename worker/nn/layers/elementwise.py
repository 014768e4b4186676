"""Layers that compute each number by itself, in blocks that stay in cache, the derivative along with the value."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from worker.nn.layers.layer import Layer, Layout, Setting
from worker.nn.parameters import Array
from worker.nn.shapes import BLOCK_FLOATS
from worker.nn.streams import Streams

# A block's value, derivative and scratch lie in the second-level cache together.
BLOCK = BLOCK_FLOATS // 4


class Elementwise(Layer):
    """y = f(x), elementwise. Shapes: x, y (S, ..., R) or (S, R, ...).

    Backward: dx = dy f'(x); the forward pass keeps f'(x).
    Raises UserError if x has not the shape it was built for.
    """

    def __init__(self, record: Any, setting: Setting) -> None:
        super().__init__(setting)
        memory = setting.memory
        self.y = memory.output(self.output_shape)
        size = self.y.size
        # In evaluation the derivative is computed and forgotten.
        self.derivative = memory.kept((size if setting.training else min(size, BLOCK),))
        self.scratch = memory.forward_scratch((2, min(size, BLOCK)))
        self.zeros = memory.constant((min(size, BLOCK),), 0)
        self.blocks = [slice(first, min(first + BLOCK, size)) for first in range(0, size, BLOCK)]

    @classmethod
    def layout(cls, record: Any, row: tuple[int, ...]) -> Layout | None:
        return None

    def number(self, value: float) -> Array:
        """A 0-d array of the layer's dtype: cheaper to pass than a Python number."""
        return np.array(value, self.setting.dtype)

    def prepare_backward(self, dy: Array) -> Array:
        self.dx = self.room_for_input_gradient(dy)
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        x_flat, y_flat, training = x.reshape(-1), self.y.reshape(-1), self.setting.training
        for block in self.blocks:
            size = block.stop - block.start
            derivative = self.derivative[block] if training else self.derivative[:size]
            self.compute(x_flat[block], y_flat[block], derivative, self.scratch[0, :size], self.scratch[1, :size])
        return self.y

    def backward(self, dy: Array) -> Array:
        np.multiply(dy.reshape(-1), self.derivative, out=self.dx.reshape(-1))
        return self.dx

    @abstractmethod
    def compute(self, x: Array, y: Array, derivative: Array, t: Array, u: Array) -> None:
        """Fills y and the derivative of one block from x; t and u are scratch of its length. y is not x."""
