"""A row in another shape, for reshape and for flatten."""

from __future__ import annotations

from typing import final

from worker.nn.layers.layer import Layer, Layout, Setting
from worker.nn.parameters import Array
from worker.nn.streams import Streams
from worker.specs import FlattenRecord, ReshapeRecord


@final
class Reshape(Layer):
    """y = x with a row in another shape of as many numbers, a single axis for flatten, in C order; nothing is copied.

    Shapes: x (S, a, b, ..., R), y (S, c, d, ..., R); or (S, R, a, b, ...) and (S, R, c, d, ...).
    Backward: dx = dy in the shape of x.
    Raises UserError if x has not the shape it was built for.
    """

    def __init__(self, record: FlattenRecord | ReshapeRecord, setting: Setting) -> None:
        super().__init__(setting)
        self.y = setting.x.reshape(self.output_shape)

    @classmethod
    def layout(cls, record: FlattenRecord | ReshapeRecord, row: tuple[int, ...]) -> Layout | None:
        return None

    def prepare_backward(self, dy: Array) -> Array:
        return dy.reshape(self.input_shape)

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        return x.reshape(self.output_shape)

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self.input_shape)
