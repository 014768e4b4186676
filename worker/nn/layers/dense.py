"""The affine map."""

from __future__ import annotations

from typing import ClassVar, final

import numpy as np

from worker.nn.layers.layer import Layer, Setting
from worker.nn.parameters import Array
from worker.nn.streams import Streams
from worker.specs import DenseRecord


@final
class Dense(Layer):
    """Affine map: y = W x + b, a shard's rows being the columns of x.

    Shapes: x (S, I, R), W (O, I), b (O,), y (S, O, R). In public W is (I, O).
    Backward: dW = dy x^T (S, O, I), db = dy 1 (S, O), dx = W^T dy.
    Raises UserError if x is not (S, I, R).
    """

    keeps_input = True
    takes_strided_input: ClassVar[bool] = True
    tiled: ClassVar[str | None] = "weight"

    def __init__(self, record: DenseRecord, setting: Setting) -> None:
        super().__init__(setting)
        self.W_OI = setting.parameters["weight"]
        self.W_IO = self.W_OI.T
        self.b_O1 = setting.parameters["bias"][:, None] if record.bias else None
        self.y_SOR = self.y = setting.memory.output(self.output_shape)
        self.b_SOR = setting.memory.forward_scratch(self.output_shape)
        # Of one shard, `dot` gives the bits of np.matmul and costs a third as much beside the product.
        self.alone = setting.shards == 1
        self.x_SIR = setting.x
        self.x_IR, self.y_OR = setting.x[0], self.y[0]

    def prepare_backward(self, dy_SOR: Array) -> Array:
        setting = self.setting
        assert setting.gradients is not None
        self.dW_SOI = setting.gradients.get("weight")
        self.dy_SOR = dy_SOR
        self.db_SO = setting.gradients.get("bias")
        self.ones_R = setting.memory.constant((setting.rows,), 1)
        self.dx_SIR = setting.memory.input_gradient(self.input_shape) if setting.needs_input_gradient else None
        if self.alone:
            self.dy_OR = dy_SOR[0]
            self.dW_OI = None if self.dW_SOI is None else self.dW_SOI[0]
            self.db_O = None if self.db_SO is None else self.db_SO[0]
            self.dx_IR = None if self.dx_SIR is None else self.dx_SIR[0]
        self.dx = dy_SOR if self.dx_SIR is None else self.dx_SIR
        return self.dx

    def forward(self, x_SIR: Array, streams: Streams | None) -> Array:
        if x_SIR is not self.x_SIR:
            self.check(x_SIR)
            self.x_SIR, self.x_IR = x_SIR, x_SIR[0]
        y_SOR = self.y_SOR
        if self.alone:
            self.W_OI.dot(self.x_IR, self.y_OR)
        else:
            np.matmul(self.W_OI, x_SIR, out=y_SOR)
        if self.b_O1 is not None:
            # Spread out first: NumPy would do so itself, into memory that it allocates.
            self.b_SOR[...] = self.b_O1
            np.add(y_SOR, self.b_SOR, y_SOR)
        return y_SOR

    def backward(self, dy_SOR: Array) -> Array:
        if self.alone:
            return self._backward_alone()
        if self.dW_SOI is not None:
            np.matmul(dy_SOR, self.x_SIR.transpose(0, 2, 1), out=self.dW_SOI)
        if self.db_SO is not None:
            # A product with ones: three times as fast as a sum along the rows.
            np.matmul(dy_SOR, self.ones_R, out=self.db_SO)
        if self.dx_SIR is not None:
            np.matmul(self.W_IO, dy_SOR, out=self.dx_SIR)
        return self.dx

    def _backward_alone(self) -> Array:
        dy_OR = self.dy_OR
        if self.dW_OI is not None:
            dy_OR.dot(self.x_IR.T, self.dW_OI)
        if self.db_O is not None:
            dy_OR.dot(self.ones_R, self.db_O)
        if self.dx_IR is not None:
            self.W_IO.dot(dy_OR, self.dx_IR)
        return self.dx

    def gradient_tile(self, shard: int, rows: slice, out: Array) -> None:
        self.dy_SOR[shard, rows].dot(self.x_SIR[shard].T, out)
