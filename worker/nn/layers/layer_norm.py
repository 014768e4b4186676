"""Layer normalization, and what it shares with RMS normalization."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import numpy as np

from worker.nn.layers.layer import Layer, Layout, Setting
from worker.nn.layers.pieces import PIECE_FLOATS, cuts, shard_groups
from worker.nn.parameters import Array
from worker.nn.streams import Streams


class LastAxisNorm(Layer):
    """y = h w (+ b), h = x r or (x - mean(x)) r over the last axis, r = 1 / sqrt(mean of squares + epsilon).

    Shapes: x, y (S, R, ..., D) as (S, N, D), N the positions of a shard's rows; w, b (D,), r (S, N, 1).
    """

    # Whether the mean is taken off and a shift added.
    centres: ClassVar[bool]

    def __init__(self, record: Any, setting: Setting) -> None:
        super().__init__(setting)
        memory, shards, dtype = setting.memory, setting.shards, setting.dtype
        width = setting.shapes.input_shape[-1]
        positions = setting.rows * math.prod(setting.shapes.input_shape[:-1])
        self.folded = (shards, positions, width)
        groups = shard_groups(shards, positions * width)
        most = groups[0].stop
        size = positions if most > 1 else min(positions, max(1, PIECE_FLOATS // width))
        self.largest = (most, size, width)
        self.positions = cuts(positions, size)
        self.groups = groups

        in_place = setting.may_overwrite_input
        # h lies where x was, if it may.
        self.keeps_input = in_place and setting.training
        if setting.training:
            self.y = memory.output(self.output_shape)
            h = setting.x if in_place else memory.kept(self.input_shape)
            self.r_SN = memory.kept((shards, positions))
        else:
            self.y = h = setting.x if in_place else memory.output(self.output_shape)
            self.r_SN = memory.forward_scratch((shards, positions))
        self.y_SND, self.h_SND = self.y.reshape(self.folded), h.reshape(self.folded)
        # Factors spread out to a piece: NumPy would do so itself, into memory that it allocates.
        self.scratch, self.spread, self.w, self.b = memory.forward_scratch((4, *self.largest))
        self.mean = memory.forward_scratch(self.largest[:2])
        self.share_D = memory.constant((width,), 1 / width)
        self.w_D, self.b_D = setting.parameters["scale"], setting.parameters.get("shift")
        self.epsilon, self.one, self.share = (np.array(number, dtype) for number in (record.epsilon, 1, 1 / width))

    @classmethod
    def layout(cls, record: Any, row: tuple[int, ...]) -> Layout | None:
        return Layout.ROWS_FIRST

    def prepare_backward(self, dy: Array) -> Array:
        setting, memory = self.setting, self.setting.memory
        assert setting.gradients is not None
        self.dw_SD, self.db_SD = setting.gradients["scale"], setting.gradients.get("shift")
        most, size, width = self.largest
        self.ones = memory.constant((size,), 1)
        # Sums over the positions of each piece.
        self.dw_sums = memory.backward_scratch((most, len(self.positions), width))
        self.db_sums = memory.backward_scratch((most, len(self.positions), width))
        self.w_share_D = memory.backward_scratch((width,))
        self.backward_scratch, self.backward_spread, self.w_backward = memory.backward_scratch((3, *self.largest))
        self.means = memory.backward_scratch((2, most, size))
        if not setting.needs_input_gradient:
            return dy
        self.dx = dy if setting.may_overwrite_gradient else memory.input_gradient(self.input_shape)
        self.dx_SND = self.dx.reshape(self.folded)
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        x_SND = x.reshape(self.folded)
        np.copyto(self.w, self.w_D)
        if self.b_D is not None:
            np.copyto(self.b, self.b_D)
        for group in self.groups:
            for positions in self.positions:
                within = (slice(0, group.stop - group.start), slice(0, positions.stop - positions.start))
                self._normalize(x_SND[group, positions], (group, positions), within)
        return self.y

    def _normalize(self, x: Array, at: tuple[slice, slice], within: tuple[slice, slice]) -> None:
        h, y, r, t, spread = self.h_SND[at], self.y_SND[at], self.r_SN[at], self.scratch[within], self.spread[within]
        if self.centres:
            # A product with 1 / D: faster than a sum along the rows.
            mean = np.matmul(x, self.share_D, out=self.mean[within])
            np.copyto(spread, mean[:, :, None])
            x = np.subtract(x, spread, out=h)
        np.multiply(x, x, out=t)
        np.matmul(t, self.share_D, out=r)
        np.add(r, self.epsilon, out=r)
        np.sqrt(r, out=r)
        np.divide(self.one, r, out=r)
        np.copyto(spread, r[:, :, None])
        np.multiply(x, spread, out=h)
        np.multiply(h, self.w[within], out=y)
        if self.b_D is not None:
            np.add(y, self.b[within], out=y)

    def backward(self, dy: Array) -> Array:
        dy_SND = dy.reshape(self.folded)
        np.multiply(self.w_D, self.share, out=self.w_share_D)
        np.copyto(self.w_backward, self.w_D)
        for group in self.groups:
            shards = slice(0, group.stop - group.start)
            for number, positions in enumerate(self.positions):
                within = (shards, slice(0, positions.stop - positions.start))
                self._gradient(dy_SND[group, positions], (group, positions), within, number)
            np.add.reduce(self.dw_sums[shards], axis=1, out=self.dw_SD[group])
            if self.db_SD is not None:
                np.add.reduce(self.db_sums[shards], axis=1, out=self.db_SD[group])
        return self.dx if self.setting.needs_input_gradient else dy

    def _gradient(self, dy: Array, at: tuple[slice, slice], within: tuple[slice, slice], number: int) -> None:
        h, t, ones = self.h_SND[at], self.backward_scratch[within], self.ones[within[1]]
        np.multiply(dy, h, out=t)
        np.matmul(ones, t, out=self.dw_sums[within[0], number])
        if self.db_SD is not None:
            np.matmul(ones, dy, out=self.db_sums[within[0], number])
        if not self.setting.needs_input_gradient:
            return
        # The means of w dy h and w dy; then dx may lie where dy was.
        dx, along, mean = self.dx_SND[at], self.means[0][within], self.means[1][within]
        np.matmul(t, self.w_share_D, out=along)
        if self.centres:
            np.matmul(dy, self.w_share_D, out=mean)
        spread = self.backward_spread[within]
        np.multiply(dy, self.w_backward[within], out=dx)
        np.copyto(spread, along[:, :, None])
        np.multiply(h, spread, out=t)
        np.subtract(dx, t, out=dx)
        if self.centres:
            np.copyto(spread, mean[:, :, None])
            np.subtract(dx, spread, out=dx)
        np.copyto(spread, self.r_SN[at][:, :, None])
        np.multiply(dx, spread, out=dx)


@final
class LayerNorm(LastAxisNorm):
    """y = h w + b, h = (x - mean(x)) r, r = 1 / sqrt(mean((x - mean(x))^2) + epsilon), means over D (Ba et al. 2016).

    Shapes: x, y (S, R, ..., D) as (S, N, D), N the positions of a shard's rows; w, b (D,).
    Backward: dw = 1 (dy h), db = 1 dy, dx = r (w dy - h mean(w dy h) - mean(w dy)).
    Raises UserError if x has not the shape it was built for.
    """

    centres: ClassVar[bool] = True
