"""The table from whole numbers to vectors."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np

from worker.nn.layers.layer import Layer, Layout, Setting
from worker.nn.parameters import Array
from worker.nn.streams import Streams
from worker.specs import EmbeddingRecord

# Numbers of the table's gradient that are added in one call: their places stay in cache.
BLOCK = 1 << 14


@final
class Embedding(Layer):
    """y[n] = W[x[n]] (Bengio et al. 2003). N are the whole numbers of a shard's rows, V the vocabulary, D the width.

    Shapes: x (S, R, ...) as (S, N), W (V, D), y (S, R, ..., D) as (S, N, D).
    Backward: dW[v] is the sum of dy[n] over the n with x[n] = v, added one by one in the order of n; dx = 0.
    Raises UserError if x has not the shape it was built for, or holds what is no whole number from 0 to below V
    ("INDEX_OUT_OF_RANGE").
    """

    def __init__(self, record: EmbeddingRecord, setting: Setting) -> None:
        super().__init__(setting)
        memory = setting.memory
        self.vocabulary, self.width = record.vocabulary, record.width
        self.W_VD = setting.parameters["weight"]
        self.count = setting.shards * setting.rows * math.prod(setting.shapes.input_shape)
        self.y = memory.output(self.output_shape)
        self.y_ND = self.y.reshape(self.count, self.width)
        self.index_N: Any = memory.kept((self.count,), np.dtype(np.intp))
        self.again_N = memory.forward_scratch((self.count,))
        self.fits_N = memory.forward_scratch((self.count,), np.dtype(np.bool_))
        self.below_N = memory.forward_scratch((self.count,), np.dtype(np.bool_))
        self.zero, self.limit = np.array(0, setting.dtype), np.array(record.vocabulary, setting.dtype)

    @classmethod
    def layout(cls, record: EmbeddingRecord, row: tuple[int, ...]) -> Layout | None:
        return Layout.ROWS_FIRST

    def prepare_backward(self, dy: Array) -> Array:
        setting, memory = self.setting, self.setting.memory
        assert setting.gradients is not None
        integers = np.dtype(np.intp)
        # Of a shard each: the shards' gradients do not lie side by side.
        self.dW = [dW_VD.reshape(-1) for dW_VD in setting.gradients["weight"]]
        self.per_shard = self.count // setting.shards
        self.index_SN1 = self.index_N.reshape(setting.shards, self.per_shard, 1)
        self.wide = np.array(self.width, integers)
        self.step = min(self.per_shard, max(1, BLOCK // self.width))
        self.places_ND: Any = memory.backward_scratch((self.step, self.width), integers)
        # Spread out once: NumPy would do so at each sum, into memory that it allocates.
        self.units_ND = np.empty(self.places_ND.shape, integers)
        np.copyto(self.units_ND, np.arange(self.width, dtype=integers))
        if not setting.needs_input_gradient:
            return dy
        self.dx = memory.input_gradient(self.input_shape)
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        x_N, fits_N, below_N = x.reshape(-1), self.fits_N, self.below_N
        # Nothing that is not in range is turned into an integer; NaN is in no range.
        np.greater_equal(x_N, self.zero, out=fits_N)
        np.less(x_N, self.limit, out=below_N)
        np.logical_and(fits_N, below_N, out=fits_N)
        self._refuse_misfits(x_N)
        np.copyto(self.index_N, x_N, casting="unsafe")
        np.copyto(self.again_N, self.index_N, casting="unsafe")
        np.equal(self.again_N, x_N, out=fits_N)
        self._refuse_misfits(x_N)
        # In range: "clip" changes none, and lets NumPy write without a copy in between.
        np.take(self.W_VD, self.index_N, axis=0, out=self.y_ND, mode="clip")
        return self.y

    def _refuse_misfits(self, x_N: Array) -> None:
        if np.logical_and.reduce(self.fits_N):
            return
        value = float(x_N[int(np.argmin(self.fits_N))])
        remedy = f"indices must be whole numbers from 0 to {self.vocabulary - 1}, below the vocabulary"
        raise self.refuse(f"the index {value:.9g}", remedy, "INDEX_OUT_OF_RANGE")

    def backward(self, dy: Array) -> Array:
        dy_SND = dy.reshape(len(self.dW), self.per_shard, self.width)
        for shard, dW in enumerate(self.dW):
            dW.fill(0)
            for first in range(0, self.per_shard, self.step):
                last = min(first + self.step, self.per_shard)
                places_ND = self.places_ND[: last - first]
                np.copyto(places_ND, self.index_SN1[shard, first:last])
                np.multiply(places_ND, self.wide, out=places_ND)
                np.add(places_ND, self.units_ND[: last - first], out=places_ND)
                # On one axis it adds in order and allocates nothing.
                np.add.at(dW, places_ND.reshape(-1), dy_SND[shard, first:last].reshape(-1))
        if not self.setting.needs_input_gradient:
            return dy
        self.dx.fill(0)
        return self.dx
