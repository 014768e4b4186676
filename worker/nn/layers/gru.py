"""The gated recurrent unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from worker.nn.layers.gates import by_shard
from worker.nn.layers.layer import Layer, Setting
from worker.nn.layers.pieces import cuts
from worker.nn.parameters import Array
from worker.nn.shapes import BLOCK_FLOATS
from worker.nn.streams import Streams
from worker.specs import GruRecord


@final
@dataclass(frozen=True, slots=True)
class _Position:
    """The arrays of one position of a group of shards, views made once, as both passes take them.

    The forward pass writes the product W x into `a` (S, 3H, R); `a_by_gate` is that as (3, S, H, R). `gates` (3, S, H, R) are
    r, u and n, `ru` the first two. `h_before` and `h` are the state before and behind the position, `m` the candidate's q,
    (S, H, R); the state behind it is also copied to `h_copy`, where the layer gives that of each position.
    """

    a: Array
    a_by_gate: Array
    gates: Array
    ru: Array
    r: Array
    u: Array
    n: Array
    h_before: Array
    m: Array
    h: Array
    h_copy: Array | None


@final
class Gru(Layer):
    """A state h that goes along the L positions of a row, 0 before the first (Cho et al. 2014; the reset gate multiplies the
    state once it is projected, so that all gates' products are one).

    Forward: a = W x_l + b, q = U h + d, each with three gates in the order reset, update, candidate: r, u = s(a + q) with
    s(v) = tanh(v / 2) / 2 + 1 / 2; n = tanh(a + r q); h' = n + u (h - n). y is the last h', or the h' of each position.
    Shapes: x (S, L, X, R), W (3H, X), U (3H, H), b, d (3H,), y (S, H, R) or (S, L, H, R). In public W is (X, 3H), U (H, 3H).
    Backward, from the last position on: dn = (dh - dh u) (1 - n^2), du = dh (h - n) (u - u^2), dm = dn r, with m the
    candidate's q, dr = dn m (r - r^2); da = dr, du, dn and dq = dr, du, dm; dh = dh u + U^T dq, and dy's part of the position
    before. At last, over all positions at once: dW = da x^T, dU = dq h^T, db = da 1, dd = dq 1, dx = W^T da.
    Raises UserError if x is not (S, L, X, R).

    Shards are taken in groups whose gates stay in cache; between products the gates of a group stand gate by gate, in one
    run of numbers. In the names of axes 3 are the gates, G is 3H, and N are L R.
    """

    keeps_input = True
    takes_strided_input: ClassVar[bool] = True

    def __init__(self, record: GruRecord, setting: Setting) -> None:
        super().__init__(setting)
        memory, shards, R = setting.memory, setting.shards, setting.rows
        self.L, self.X = setting.shapes.input_shape
        self.H, self.sequence = record.units, record.sequence
        H = self.H
        self.W_GX, self.U_GH = setting.parameters["input_weight"], setting.parameters["state_weight"]
        self.b_3H, self.d_3H = (setting.parameters[name].reshape(3, 1, H, 1) for name in ("input_bias", "state_bias"))
        self.y = memory.output(self.output_shape)
        self.groups = cuts(shards, BLOCK_FLOATS // (4 * H * R))
        self.size = size = self.groups[0].stop
        self.a, self.q, self.q_turned, self.b, self.d = memory.forward_scratch((5, size * 3 * H * R))
        self.h_last, self.t = memory.forward_scratch((2, size * H * R))
        self.zeros_SHR = memory.constant((size, H, R), 0)
        self.half = np.array(0.5, setting.dtype)
        self.h: list[Array] = []
        self.positions = [self._positions(group) for group in self.groups]

    def _positions(self, group: slice) -> list[_Position]:
        """The arrays of a group of shards at each position."""
        kept, H, R, size = self.setting.memory.kept, self.H, self.setting.rows, group.stop - group.start
        # Evaluation needs no position but the present one.
        depth = self.L if self.setting.training else 1
        gates_L3SHR, m_LSHR, h_LSHR = kept((depth, 3, size, H, R)), kept((depth, size, H, R)), kept((depth, size, H, R))
        self.h.append(h_LSHR)
        positions: list[_Position] = []
        for at in range(self.L):
            here = at % depth
            gates = gates_L3SHR[here]
            r, u, n = gates
            a, a_by_gate = by_shard(gates, self.a)
            if at < self.L - 1:
                h = h_LSHR[(at + 1) % depth]
            else:
                h = self.h_last[: size * H * R].reshape(size, H, R) if self.sequence else self.y[group]
            positions.append(
                _Position(
                    a=a,
                    a_by_gate=a_by_gate,
                    gates=gates,
                    ru=gates[:2],
                    r=r,
                    u=u,
                    n=n,
                    h_before=h_LSHR[here],
                    m=m_LSHR[here],
                    h=h,
                    h_copy=self.y[group, at] if self.sequence else None,
                )
            )
        return positions

    def prepare_backward(self, dy: Array) -> Array:
        setting, H, size = self.setting, self.H, self.size
        memory, R = setting.memory, setting.rows
        assert setting.gradients is not None
        self.gradients = setting.gradients
        self.W_XG, self.U_HG = self.W_GX.T, self.U_GH.T
        self.one = np.array(1, setting.dtype)
        self.ones_N = memory.constant((self.L * R,), 1)
        self.dq, self.dq_turned = memory.backward_scratch((2, size * 3 * H * R))
        self.slope = memory.backward_scratch((size * 2 * H * R,))
        self.dh, self.dn, self.past, self.t_back = memory.backward_scratch((4, size * H * R))
        # All positions side by side, as the columns of one product: dm, dr, du, dn, so that dr, du, dn lie together.
        self.d_S4HLR = memory.backward_scratch((size, 4, H, self.L, R))
        self.x_SXLR = memory.backward_scratch((size, self.X, self.L, R))
        self.h_SHLR = memory.backward_scratch((size, H, self.L, R))
        self.dy_of = [[dy[group, at] for at in range(self.L)] if self.sequence else [dy[group]] for group in self.groups]
        if not setting.needs_input_gradient:
            return dy
        self.dx_SLXR = memory.input_gradient(self.input_shape)
        return self.dx_SLXR

    def forward(self, x_SLXR: Array, streams: Streams | None) -> Array:
        self.check(x_SLXR)
        self.x_SLXR = x_SLXR
        for group, positions in zip(self.groups, self.positions, strict=True):
            self._forward(x_SLXR[group], positions)
        return self.y

    def _forward(self, x_SLXR: Array, positions: list[_Position]) -> None:
        W, U, half, size = self.W_GX, self.U_GH, self.half, len(x_SLXR)
        shape = (size, self.H, self.setting.rows)
        t = self.t[: math.prod(shape)].reshape(shape)
        q, b, d = (full[: 3 * math.prod(shape)].reshape(3, *shape) for full in (self.q, self.b, self.d))
        q_SGR, q_turned = by_shard(q, self.q_turned)
        q_ru, q_n, d_n = q[:2], q[2], d[2]
        # The biases of reset and update are added as one, that of the candidate's q by itself.
        np.copyto(b, self.b_3H)
        np.copyto(d, self.d_3H)
        np.add(b[:2], d[:2], out=b[:2])
        np.copyto(positions[0].h_before, self.zeros_SHR[:size])
        for at, p in enumerate(positions):
            gates, ru, n, m, h_before = p.gates, p.ru, p.n, p.m, p.h_before
            np.matmul(W, x_SLXR[:, at], out=p.a)
            np.matmul(U, h_before, out=q_SGR)
            if size > 1:
                np.copyto(gates, p.a_by_gate)
                np.copyto(q, q_turned)
            np.add(gates, b, out=gates)
            np.add(ru, q_ru, out=ru)
            np.multiply(ru, half, out=ru)
            np.tanh(ru, out=ru)
            np.multiply(ru, half, out=ru)
            np.add(ru, half, out=ru)
            np.add(q_n, d_n, out=m)
            np.multiply(p.r, m, out=t)
            np.add(n, t, out=n)
            np.tanh(n, out=n)
            np.subtract(h_before, n, out=t)
            np.multiply(p.u, t, out=t)
            np.add(n, t, out=p.h)
            if p.h_copy is not None:
                np.copyto(p.h_copy, p.h)

    def backward(self, dy: Array) -> Array:
        for number, group in enumerate(self.groups):
            self._through_time(self.positions[number], self.dy_of[number], group.stop - group.start)
            self._sums(group, self.h[number])
        return self.dx_SLXR if self.setting.needs_input_gradient else dy

    def _through_time(self, positions: list[_Position], dy: list[Array], size: int) -> None:
        """da and dq of each position, from the last to the first."""
        one, U_HG, shape = self.one, self.U_HG, (size, self.H, self.setting.rows)
        dq = self.dq[: 3 * math.prod(shape)].reshape(3, *shape)
        slope = self.slope[: 2 * math.prod(shape)].reshape(2, *shape)
        dh, dn, past, t = (full[: math.prod(shape)].reshape(shape) for full in (self.dh, self.dn, self.past, self.t_back))
        dr, du, dm = dq
        dru = dq[:2]
        dq_SGR, turned = by_shard(dq, self.dq_turned)
        d_4LSHR = self.d_S4HLR[:size].transpose(1, 3, 0, 2, 4)
        dm_LSHR, dru_L2SHR, dn_LSHR = d_4LSHR[0], d_4LSHR[1:3].transpose(1, 0, 2, 3, 4), d_4LSHR[3]
        np.copyto(dh, dy[-1])
        for at in range(self.L - 1, -1, -1):
            p = positions[at]
            ru, n = p.ru, p.n
            np.multiply(dh, p.u, out=past)
            np.subtract(dh, past, out=dn)
            np.multiply(n, n, out=t)
            np.subtract(one, t, out=t)
            np.multiply(dn, t, out=dn)
            np.subtract(p.h_before, n, out=t)
            np.multiply(dh, t, out=du)
            np.multiply(dn, p.m, out=dr)
            np.multiply(dn, p.r, out=dm)
            np.multiply(ru, ru, out=slope)
            np.subtract(ru, slope, out=slope)
            np.multiply(dru, slope, out=dru)
            np.copyto(dm_LSHR[at], dm)
            np.copyto(dru_L2SHR[at], dru)
            np.copyto(dn_LSHR[at], dn)
            if at:
                if size > 1:
                    np.copyto(turned, dq)
                np.matmul(U_HG, dq_SGR, out=dh)
                np.add(dh, past, out=dh)
                if self.sequence:
                    np.copyto(t, dy[at - 1])
                    np.add(dh, t, out=dh)

    def _sums(self, group: slice, h_LSHR: Array) -> None:
        """The gradients of a group of shards, and its dx, from da and dq at all positions."""
        H, size, columns, gradients = self.H, group.stop - group.start, self.L * self.setting.rows, self.gradients
        d_S4N = self.d_S4HLR[:size].reshape(size, 4 * H, columns)
        dm_SHN, dru_SN, da_SGN = d_S4N[:, :H], d_S4N[:, H : 3 * H], d_S4N[:, H:]
        x_SXN, h_SHN = self.x_SXLR[:size].reshape(size, self.X, columns), self.h_SHLR[:size].reshape(size, H, columns)
        np.copyto(self.x_SXLR[:size], self.x_SLXR[group].transpose(0, 2, 1, 3))
        np.copyto(self.h_SHLR[:size], h_LSHR.transpose(1, 2, 0, 3))
        dU_SGH, dd_SG = gradients["state_weight"][group], gradients["state_bias"][group]
        np.matmul(da_SGN, x_SXN.transpose(0, 2, 1), out=gradients["input_weight"][group])
        np.matmul(da_SGN, self.ones_N, out=gradients["input_bias"][group])
        np.matmul(dru_SN, h_SHN.transpose(0, 2, 1), out=dU_SGH[:, : 2 * H])
        np.matmul(dm_SHN, h_SHN.transpose(0, 2, 1), out=dU_SGH[:, 2 * H :])
        np.matmul(dru_SN, self.ones_N, out=dd_SG[:, : 2 * H])
        np.matmul(dm_SHN, self.ones_N, out=dd_SG[:, 2 * H :])
        if self.setting.needs_input_gradient:
            # The copy of x is not needed any more: dx takes its place.
            np.matmul(self.W_XG, da_SGN, out=x_SXN)
            np.copyto(self.dx_SLXR[group], self.x_SXLR[:size].transpose(0, 2, 1, 3))
