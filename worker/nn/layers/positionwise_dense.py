"""The affine map over the last axis of rows with several axes."""

from __future__ import annotations

import math
from typing import final

import numpy as np

from worker.nn.layers.layer import Layer, Layout, Setting
from worker.nn.parameters import Array
from worker.nn.streams import Streams
from worker.specs import DenseRecord


@final
class PositionwiseDense(Layer):
    """Affine map of every position of a row: y = x W + b. N are the positions of a shard's rows.

    Shapes: x (S, R, ..., I) as (S, N, I), W (I, O), b (O,), y (S, R, ..., O).
    Backward: dW = x^T dy (S, I, O), db = 1 dy (S, O), dx = dy W^T.
    Raises UserError if x has not the shape it was built for.
    """

    keeps_input = True

    def __init__(self, record: DenseRecord, setting: Setting) -> None:
        super().__init__(setting)
        self.positions = setting.rows * math.prod(setting.shapes.input_shape[:-1])
        self.inputs, self.outputs = setting.shapes.input_shape[-1], record.units
        self.W_IO = setting.parameters["weight"]
        self.b_O = setting.parameters["bias"] if record.bias else None
        self.y = setting.memory.output(self.output_shape)
        self.y_SNO = self.y.reshape(setting.shards, self.positions, self.outputs)
        if self.b_O is not None:
            self.b_SNO = setting.memory.forward_scratch(self.y_SNO.shape)

    @classmethod
    def layout(cls, record: DenseRecord, row: tuple[int, ...]) -> Layout | None:
        return Layout.ROWS_FIRST

    def prepare_backward(self, dy: Array) -> Array:
        setting = self.setting
        assert setting.gradients is not None
        self.dW_SIO = setting.gradients["weight"]
        self.db_SO = setting.gradients.get("bias")
        self.ones_N = setting.memory.constant((self.positions,), 1)
        self.W_OI = self.W_IO.T
        if not setting.needs_input_gradient:
            return dy
        self.dx = setting.memory.input_gradient(self.input_shape)
        self.dx_SNI = self.dx.reshape(setting.shards, self.positions, self.inputs)
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        self.x_SNI = x.reshape(self.setting.shards, self.positions, self.inputs)
        np.matmul(self.x_SNI, self.W_IO, out=self.y_SNO)
        if self.b_O is not None:
            # Spread out first: NumPy would do so itself, into memory that it allocates.
            np.copyto(self.b_SNO, self.b_O)
            np.add(self.y_SNO, self.b_SNO, out=self.y_SNO)
        return self.y

    def backward(self, dy: Array) -> Array:
        dy_SNO = dy.reshape(self.setting.shards, self.positions, self.outputs)
        np.matmul(self.x_SNI.transpose(0, 2, 1), dy_SNO, out=self.dW_SIO)
        if self.db_SO is not None:
            np.matmul(self.ones_N, dy_SNO, out=self.db_SO)
        if not self.setting.needs_input_gradient:
            return dy
        np.matmul(dy_SNO, self.W_OI, out=self.dx_SNI)
        return self.dx
