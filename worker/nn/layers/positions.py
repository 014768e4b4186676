"""What tells a sequence's positions apart."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, final

import numpy as np

from worker.nn.layers.layer import Layer, Layout, Setting
from worker.nn.layers.repeated import Repeated
from worker.nn.parameters import Array
from worker.nn.streams import Streams
from worker.specs import PositionsRecord


@lru_cache(maxsize=8)
def sinusoids(length: int, width: int, dtype: np.dtype[Any]) -> Array:
    """sin(l / 10000^(d / D)) at even d, cos(l / 10000^((d - 1) / D)) at odd d, (L, D); computed in float64, read-only."""
    speeds = [math.exp(-math.log(10_000) * (unit - unit % 2) / width) for unit in range(width)]
    table = np.array(
        [[(math.cos if unit % 2 else math.sin)(place * speed) for unit, speed in enumerate(speeds)] for place in range(length)],
        dtype,
    )
    table.flags.writeable = False
    return table


@final
class Positions(Layer):
    """y = x + P, P learned, or sines and cosines of the position (Vaswani et al. 2017, section 3.5).

    Shapes: x, y (S, R, L, D), P (L, D).
    Backward: dP = the sum of dy over the rows (S, L, D), dx = dy.
    Raises UserError if x has not the shape it was built for.
    """

    def __init__(self, record: PositionsRecord, setting: Setting) -> None:
        super().__init__(setting)
        length, width = setting.shapes.input_shape
        self.learned = record.learned
        P_LD = setting.parameters["weight"] if record.learned else sinusoids(length, width, setting.dtype)
        self.places = setting.shards * setting.rows
        self.P = Repeated(P_LD, self.places, setting.memory)
        self.y = setting.x if setting.may_overwrite_input else setting.memory.output(self.output_shape)

    @classmethod
    def layout(cls, record: PositionsRecord, row: tuple[int, ...]) -> Layout | None:
        return Layout.ROWS_FIRST

    def prepare_backward(self, dy: Array) -> Array:
        setting = self.setting
        assert setting.gradients is not None
        if self.learned:
            self.dP_SM = setting.gradients["weight"].reshape(setting.shards, -1)
            self.ones_R = setting.memory.constant((setting.rows,), 1)
        return dy

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        self.P.add(x.reshape(self.places, -1), self.y.reshape(self.places, -1))
        return self.y

    def backward(self, dy: Array) -> Array:
        if self.learned:
            np.matmul(self.ones_R, dy.reshape(self.setting.shards, self.setting.rows, -1), out=self.dP_SM)
        return dy
