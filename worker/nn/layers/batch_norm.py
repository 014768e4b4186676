"""Batch normalization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, final

import numpy as np

from worker.nn.layers.layer import Layer, Setting
from worker.nn.layers.pieces import PIECE_FLOATS, cuts, shard_groups
from worker.nn.layers.relu import bits_of, let_through
from worker.nn.parameters import Array
from worker.nn.streams import Streams
from worker.specs import BatchNormRecord, ReluRecord

Place: TypeAlias = tuple[slice, slice, slice]


@final
@dataclass(frozen=True, slots=True)
class _Piece:
    """Shards, positions and channels that are worked on together: where they lie `at` in their group, and within scratch.

    Its factors are the same at all positions, and stand at `factors` for as many as the piece has.
    """

    at: Place
    within: Place
    factors: Place


@final
@dataclass(frozen=True, slots=True)
class _Group:
    """Some shards, how many, and their pieces."""

    shards: slice
    count: int
    pieces: tuple[_Piece, ...]


@final
class BatchNorm(Layer):
    """y = (x - m) r w + b for each channel, r = 1 / sqrt(v + epsilon); then max(y, 0) where a rectifier follows.

    In training m and v are a shard's own mean and biased variance of a channel over its R rows and P positions, n numbers in
    all; in evaluation the running ones (Ioffe and Szegedy 2015).
    Shapes: x, y (S, ..., C, R) as (S, P, C, R); w, b and the running statistics (C,).
    Backward: dy = 0 where a rectifier was closed; db = sum(dy), dw = r sum(dy (x - m)),
    dx = w r (dy - db / n - (x - m) r dw / n). In the place of gradients, the running mean gets R m and the running variance
    R v n / (n - 1).
    Raises UserError in training if n < 2, and if x is not (S, ..., C, R).
    """

    absorbs_activation: ClassVar[bool] = True

    def __init__(self, record: BatchNormRecord, setting: Setting) -> None:
        super().__init__(setting)
        memory, row = setting.memory, setting.shapes.input_shape
        self.positions, self.channels, self.rows = math.prod(row[:-1]), row[-1], setting.rows
        self.numbers = self.positions * self.rows
        if setting.training and self.numbers < 2:
            got = f"{self.numbers} number a channel in a shard of {self.rows} rows"
            raise self.refuse(got, "a variance takes 2: give shards more rows, or use layer_norm", "TOO_FEW_VALUES")
        self.rectified = isinstance(setting.activation, ReluRecord)
        # Both passes centre x where it lies, if they may; its own backward pass then reads it, and y where it is rectified.
        in_place = setting.may_overwrite_input
        self.keeps_input = in_place and setting.training
        self.keeps_output = self.rectified and setting.training

        self.folded = (setting.shards, self.positions, self.channels, self.rows)
        self._cut()
        if setting.training:
            self.y = memory.output(self.output_shape)
            self.centred = (setting.x if in_place else memory.kept(self.input_shape)).reshape(self.folded)
            self.mean_SC = memory.kept((setting.shards, self.channels))
            self.squares_SC = memory.kept((setting.shards, self.channels))
            self.r_SC = memory.kept((setting.shards, self.channels))
            self.sums = memory.forward_scratch((self.most, self.positions, self.channels))
            self.scratch = memory.forward_scratch(self.largest)
        else:
            self.y = setting.x if in_place else memory.output(self.output_shape)
            self.r_SC = memory.forward_scratch((self.most, self.channels))
        self.y_SPCR = self.y.reshape(self.folded)
        # What is multiplied and added, spread out to a piece: NumPy would do so itself, into memory that it allocates.
        self.factors = memory.forward_scratch((3, *self.spread))
        self.w_SC, self.scaled_SC = memory.forward_scratch((2, self.most, self.channels))
        self.ones_R = memory.constant((self.rows,), 1)
        self.zeros = memory.constant(self.largest, 0) if self.rectified else None
        self.w_C, self.b_C = setting.parameters["scale"], setting.parameters["shift"]
        self.epsilon, self.one = self._number(record.epsilon), self._number(1)
        self.share = self._number(1 / self.numbers)

    def _number(self, value: float) -> Array:
        return np.array(value, self.setting.dtype)

    def _cut(self) -> None:
        """Groups of shards, and pieces of each: whole positions, or channels of one where a position is large."""
        shards, positions, channels, rows = self.folded
        groups = shard_groups(shards, positions * channels * rows)
        self.most = groups[0].stop
        most_positions = min(positions, max(1, PIECE_FLOATS // (channels * rows)))
        most_channels = min(channels, max(1, PIECE_FLOATS // rows)) if most_positions == 1 else channels
        if self.most > 1:
            most_positions, most_channels = positions, channels
        self.largest = (self.most, most_positions, most_channels, rows)
        self.spread = (self.most, most_positions, channels, rows)
        self.groups = []
        for group in groups:
            count = group.stop - group.start
            pieces = []
            for p in cuts(positions, most_positions):
                for c in cuts(channels, most_channels):
                    shards_within, positions_within = slice(0, count), slice(0, p.stop - p.start)
                    within = (shards_within, positions_within, slice(0, c.stop - c.start))
                    pieces.append(_Piece((shards_within, p, c), within, (shards_within, positions_within, c)))
            self.groups.append(_Group(group, count, tuple(pieces)))

    def prepare_backward(self, dy: Array) -> Array:
        setting, memory = self.setting, self.setting.memory
        assert setting.gradients is not None
        self.dw_SC, self.db_SC = setting.gradients["scale"], setting.gradients["shift"]
        # The gradients of shards do not lie side by side: sums are formed here and then copied.
        self.dw_own_SC, self.db_own_SC = memory.backward_scratch((2, setting.shards, self.channels))
        self.dmean_SC, self.dvariance_SC = setting.gradients["running_mean"], setting.gradients["running_variance"]
        # From sums over a shard to R times the mean, and R times the unbiased variance.
        self.mean_weight = self._number(self.rows)
        self.variance_weight = self._number(self.rows / (self.numbers - 1))
        self.minus_share = self._number(-1 / self.numbers)
        self.backward_sums = memory.backward_scratch((2, self.most, self.positions, self.channels))
        self.backward_factors = memory.backward_scratch((3, *self.spread))
        self.backward_scratch = memory.backward_scratch(self.largest)
        self.t_SC, self.a_SC, self.b_SC = memory.backward_scratch((3, self.most, self.channels))
        if self.rectified:
            self.integers = bits_of(setting.dtype)
            self.ones = memory.constant(self.largest, 1, self.integers)
            self.y_bits = self.y_SPCR.view(self.integers)
            self.scratch_bits = self.backward_scratch.view(self.integers)
        if not setting.needs_input_gradient:
            # What the rectifier lets through is written piece by piece, each over the last.
            self.dy_scratch = memory.backward_scratch(self.largest) if self.rectified else None
            return dy
        self.dx = dy if setting.may_overwrite_gradient else memory.input_gradient(self.input_shape)
        self.dx_SPCR = self.dx.reshape(self.folded)
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        x_SPCR = x.reshape(self.folded)
        if not self.setting.training:
            self._evaluate(x_SPCR)
            return self.y
        self._spread_parameters()
        mean = self.factors[2]
        for group in self.groups:
            count, at = group.count, group.shards
            own, centred = x_SPCR[at], self.centred[at]
            sums, mean_C, squares_C, r_C = self.sums[:count], self.mean_SC[at], self.squares_SC[at], self.r_SC[at]
            for piece in group.pieces:
                self._sum_rows(own[piece.at], sums[piece.at])
            np.add.reduce(sums, axis=1, out=mean_C)
            np.multiply(mean_C, self.share, out=mean_C)
            np.copyto(mean[:count], mean_C[:, None, :, None])
            for piece in group.pieces:
                x_piece, t = centred[piece.at], self.scratch[piece.within]
                np.subtract(own[piece.at], mean[piece.factors], out=x_piece)
                np.multiply(x_piece, x_piece, out=t)
                self._sum_rows(t, sums[piece.at])
            np.add.reduce(sums, axis=1, out=squares_C)
            np.multiply(squares_C, self.share, out=r_C)
            self._factor(r_C)
            for piece in group.pieces:
                self._scale(centred[piece.at], group, piece)
        return self.y

    def _evaluate(self, x_SPCR: Array) -> None:
        parameters = self.setting.parameters
        self._spread_parameters()
        np.copyto(self.factors[2], parameters["running_mean"][:, None])
        np.copyto(self.r_SC, parameters["running_variance"])
        self._factor(self.r_SC)
        for group in self.groups:
            own, y = x_SPCR[group.shards], self.y_SPCR[group.shards]
            for piece in group.pieces:
                np.subtract(own[piece.at], self.factors[2][piece.factors], out=y[piece.at])
                self._scale(y[piece.at], group, piece)

    def _spread_parameters(self) -> None:
        np.copyto(self.w_SC, self.w_C)
        np.copyto(self.factors[1], self.b_C[:, None])

    def _sum_rows(self, a: Array, sums: Array) -> None:
        """A product with ones, shard by shard: three times as fast as a sum along the rows."""
        np.matmul(a.reshape(len(a), -1, self.rows), self.ones_R, out=sums.reshape(len(a), -1))

    def _factor(self, r_C: Array) -> None:
        """Turns variances into 1 / sqrt(variance + epsilon), and spreads out what the centred x is multiplied by."""
        scaled_C = self.scaled_SC[: len(r_C)]
        np.add(r_C, self.epsilon, out=r_C)
        np.sqrt(r_C, out=r_C)
        np.divide(self.one, r_C, out=r_C)
        np.multiply(r_C, self.w_SC[: len(r_C)], out=scaled_C)
        np.copyto(self.factors[0, : len(r_C)], scaled_C[:, None, :, None])

    def _scale(self, centred: Array, group: _Group, piece: _Piece) -> None:
        y = self.y_SPCR[group.shards][piece.at]
        np.multiply(centred, self.factors[0][piece.factors], out=y)
        np.add(y, self.factors[1][piece.factors], out=y)
        if self.zeros is not None:
            np.maximum(y, self.zeros[piece.within], out=y)

    def backward(self, dy: Array) -> Array:
        dy_SPCR = dy.reshape(self.folded)
        np.multiply(self.mean_SC, self.mean_weight, out=self.mean_SC)
        np.copyto(self.dmean_SC, self.mean_SC)
        np.multiply(self.squares_SC, self.variance_weight, out=self.squares_SC)
        np.copyto(self.dvariance_SC, self.squares_SC)
        for group in self.groups:
            given = self._sums(dy_SPCR[group.shards], group)
            if self.setting.needs_input_gradient:
                self._input_gradient(given, group)
        np.copyto(self.dw_SC, self.dw_own_SC)
        np.copyto(self.db_SC, self.db_own_SC)
        return self.dx if self.setting.needs_input_gradient else dy

    def _sums(self, dy: Array, group: _Group) -> Array:
        """The gradients of scale and shift; returns dy behind the rectifier."""
        count, at, bits = group.count, group.shards, self.integers if self.rectified else None
        centred, db_sums, dw_sums = self.centred[at], self.backward_sums[0, :count], self.backward_sums[1, :count]
        open_dy = self.dx_SPCR[at] if self.rectified and self.setting.needs_input_gradient else dy
        for piece in group.pieces:
            within = piece.within
            t, dy_piece = self.backward_scratch[within], dy[piece.at]
            if bits is not None:
                kept = open_dy[piece.at] if self.setting.needs_input_gradient else self._own_scratch()[within]
                y_bits, ones, room = self.y_bits[at][piece.at], self.ones[within], self.scratch_bits[within]
                let_through(dy_piece.view(bits), y_bits, ones, room, kept.view(bits))
                dy_piece = kept
            self._sum_rows(dy_piece, db_sums[piece.at])
            np.multiply(dy_piece, centred[piece.at], out=t)
            self._sum_rows(t, dw_sums[piece.at])
        dw_SC = self.dw_own_SC[at]
        np.add.reduce(db_sums, axis=1, out=self.db_own_SC[at])
        np.add.reduce(dw_sums, axis=1, out=dw_SC)
        np.multiply(dw_SC, self.r_SC[at], out=dw_SC)
        return open_dy

    def _own_scratch(self) -> Array:
        assert self.dy_scratch is not None
        return self.dy_scratch

    def _input_gradient(self, dy: Array, group: _Group) -> None:
        count, at = group.count, group.shards
        centred, dx = self.centred[at], self.dx_SPCR[at]
        r_C, t_C, a_C, b_C = self.r_SC[at], self.t_SC[:count], self.a_SC[:count], self.b_SC[:count]
        a, b, c = self.backward_factors
        # dx = a dy + b (x - m) + c
        np.copyto(a_C, self.w_C)
        np.multiply(r_C, a_C, out=a_C)
        np.copyto(a[:count], a_C[:, None, :, None])
        np.multiply(a_C, self.minus_share, out=a_C)
        np.multiply(r_C, self.dw_own_SC[at], out=t_C)
        np.multiply(a_C, t_C, out=b_C)
        np.copyto(b[:count], b_C[:, None, :, None])
        np.multiply(a_C, self.db_own_SC[at], out=t_C)
        np.copyto(c[:count], t_C[:, None, :, None])
        for piece in group.pieces:
            t, dx_piece = self.backward_scratch[piece.within], dx[piece.at]
            np.multiply(centred[piece.at], b[piece.factors], out=t)
            np.add(t, c[piece.factors], out=t)
            np.multiply(dy[piece.at], a[piece.factors], out=dx_piece)
            np.add(dx_piece, t, out=dx_piece)
