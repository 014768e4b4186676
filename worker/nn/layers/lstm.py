"""Long short-term memory."""

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
from worker.specs import LstmRecord


@final
@dataclass(frozen=True, slots=True)
class _Position:
    """The arrays of one position of a group of shards, views made once, as both passes take them.

    The forward pass writes x and h of the position before into `z` (S, X + H, R), of which `z_x` is x's part, and the product
    W z into `a` (S, 4H, R); `a_by_gate` is that as (4, S, H, R). `gates` (4, S, H, R) are i, f, o and g, `ifo` the first three.
    `cell_before`, `cell`, `tanh` and `h` are c, c', tanh(c') and h', (S, H, R); h' is also copied to `h_copies`.
    """

    z: Array
    z_x: Array
    a: Array
    a_by_gate: Array
    gates: Array
    ifo: Array
    i: Array
    f: Array
    o: Array
    g: Array
    cell_before: Array
    cell: Array
    tanh: Array
    h: Array
    h_copies: tuple[Array, ...]


@final
class Lstm(Layer):
    """A state h and a cell c that go along the L positions of a row, both 0 before the first (Hochreiter and Schmidhuber 1997;
    the forget gate: Gers et al. 2000).

    Forward: a = W [x_l; h] + b, its four gates in the order input, forget, output, candidate: i, f, o = s(a), g = tanh(a) with
    s(a) = tanh(a / 2) / 2 + 1 / 2; c' = f c + i g; h' = o tanh(c'). y is the last h', or the h' of each position.
    Shapes: x (S, L, X, R), W (4H, X + H), b (4H,), y (S, H, R) or (S, L, H, R). In public W is (X + H, 4H), x's rows first.
    Backward, from the last position on: do = dh tanh(c'), dc += dh o (1 - tanh(c')^2), di = dc g, df = dc c, dg = dc i, then
    dc = dc f; da = d s'(a) with s' = s - s^2, tanh' = 1 - tanh^2; dh = W_h^T da, and dy's part of the position before. At last,
    over all positions at once: dW = da [x; h]^T, db = da 1, dx = W_x^T da.
    Raises UserError if x is not (S, L, X, R).

    Shards are taken in groups whose gates stay in cache; between products the gates of a group stand gate by gate, in one
    run of numbers. In the names of axes 4 are the gates, Z is X + H, G is 4H, and N are L R.
    """

    takes_strided_input: ClassVar[bool] = True

    def __init__(self, record: LstmRecord, setting: Setting) -> None:
        super().__init__(setting)
        memory, shards, R = setting.memory, setting.shards, setting.rows
        self.L, self.X = setting.shapes.input_shape
        self.H, self.sequence = record.units, record.sequence
        H = self.H
        self.W_GZ, self.b_4H = setting.parameters["weight"], setting.parameters["bias"].reshape(4, 1, H, 1)
        self.y = memory.output(self.output_shape)
        self.groups = cuts(shards, BLOCK_FLOATS // (4 * H * R))
        self.size = size = self.groups[0].stop
        self.a = memory.forward_scratch((size * 4 * H * R,))
        self.b = memory.forward_scratch((size * 4 * H * R,))
        self.h, self.t = memory.forward_scratch((2, size * H * R))
        self.zeros_SHR = memory.constant((size, H, R), 0)
        self.half = np.array(0.5, setting.dtype)
        self.z: list[Array] = []
        self.positions = [self._positions(group) for group in self.groups]

    def _positions(self, group: slice) -> list[_Position]:
        """The arrays of a group of shards at each position."""
        kept, X, H, R, size = self.setting.memory.kept, self.X, self.H, self.setting.rows, group.stop - group.start
        # Evaluation needs no position but the present one.
        depth = self.L if self.setting.training else 1
        z_LSZR, gates_L4SHR = kept((depth, size, X + H, R)), kept((depth, 4, size, H, R))
        cell_LSHR, tanh_LSHR = kept((depth, size, H, R)), kept((depth, size, H, R))
        self.z.append(z_LSZR)
        positions: list[_Position] = []
        before = self.zeros_SHR[:size]
        for at in range(self.L):
            here, last = at % depth, at == self.L - 1
            z, gates, cell = z_LSZR[here], gates_L4SHR[here], cell_LSHR[here]
            i, f, o, g = gates
            a, a_by_gate = by_shard(gates, self.a)
            h = self.y[group] if last and not self.sequence else self.h[: size * H * R].reshape(size, H, R)
            copies = [] if last else [z_LSZR[(at + 1) % depth, :, X:]]
            if self.sequence:
                copies.append(self.y[group, at])
            positions.append(
                _Position(
                    z=z,
                    z_x=z[:, :X],
                    a=a,
                    a_by_gate=a_by_gate,
                    gates=gates,
                    ifo=gates[:3],
                    i=i,
                    f=f,
                    o=o,
                    g=g,
                    cell_before=before,
                    cell=cell,
                    tanh=tanh_LSHR[here],
                    h=h,
                    h_copies=tuple(copies),
                )
            )
            before = cell
        return positions

    def prepare_backward(self, dy: Array) -> Array:
        setting, H, X, size = self.setting, self.H, self.X, self.size
        memory, R = setting.memory, setting.rows
        assert setting.gradients is not None
        self.dW_SGZ, self.db_SG = setting.gradients["weight"], setting.gradients["bias"]
        self.W_HG, self.W_XG = self.W_GZ[:, X:].T, self.W_GZ[:, :X].T
        self.one = np.array(1, setting.dtype)
        self.ones_N = memory.constant((self.L * R,), 1)
        self.da, self.slope, self.da_turned = memory.backward_scratch((3, size * 4 * H * R))
        self.dh, self.dc, self.u = memory.backward_scratch((3, size * H * R))
        # All positions side by side, as the columns of one product.
        self.da_SGLR = memory.backward_scratch((size, 4 * H, self.L, R))
        self.z_SZLR = memory.backward_scratch((size, X + H, self.L, R))
        self.dy_of = [[dy[group, at] for at in range(self.L)] if self.sequence else [dy[group]] for group in self.groups]
        if not setting.needs_input_gradient:
            return dy
        self.dx_SLXR = memory.input_gradient(self.input_shape)
        return self.dx_SLXR

    def forward(self, x_SLXR: Array, streams: Streams | None) -> Array:
        self.check(x_SLXR)
        for group, positions in zip(self.groups, self.positions, strict=True):
            self._forward(x_SLXR[group], positions)
        return self.y

    def _forward(self, x_SLXR: Array, positions: list[_Position]) -> None:
        W, half, size = self.W_GZ, self.half, len(x_SLXR)
        shape = (size, self.H, self.setting.rows)
        t = self.t[: math.prod(shape)].reshape(shape)
        b = self.b[: 4 * math.prod(shape)].reshape(4, *shape)
        np.copyto(b, self.b_4H)
        np.copyto(positions[0].z[:, self.X :], self.zeros_SHR[:size])
        for at, p in enumerate(positions):
            gates, ifo, cell, h = p.gates, p.ifo, p.cell, p.h
            np.copyto(p.z_x, x_SLXR[:, at])
            np.matmul(W, p.z, out=p.a)
            if size > 1:
                np.copyto(gates, p.a_by_gate)
            np.add(gates, b, out=gates)
            np.multiply(ifo, half, out=ifo)
            np.tanh(gates, out=gates)
            np.multiply(ifo, half, out=ifo)
            np.add(ifo, half, out=ifo)
            np.multiply(p.f, p.cell_before, out=cell)
            np.multiply(p.i, p.g, out=t)
            np.add(cell, t, out=cell)
            np.tanh(cell, out=p.tanh)
            np.multiply(p.o, p.tanh, out=h)
            for copy in p.h_copies:
                np.copyto(copy, h)

    def backward(self, dy: Array) -> Array:
        for number, group in enumerate(self.groups):
            self._through_time(self.positions[number], self.dy_of[number], group.stop - group.start)
            self._sums(group, self.z[number])
        return self.dx_SLXR if self.setting.needs_input_gradient else dy

    def _through_time(self, positions: list[_Position], dy: list[Array], size: int) -> None:
        """da of each position, from the last to the first; what the forward pass kept is used up."""
        H, one, W_HG, shape = self.H, self.one, self.W_HG, (size, self.H, self.setting.rows)
        da, slope = (full[: 4 * math.prod(shape)].reshape(4, *shape) for full in (self.da, self.slope))
        dh, dc, u = (full[: math.prod(shape)].reshape(shape) for full in (self.dh, self.dc, self.u))
        di, df, do, dg = da
        slope_ifo, slope_g = slope[:3], slope[3]
        da_SGR, turned = by_shard(da, self.da_turned)
        da_L4SHR = self.da_SGLR[:size].reshape(size, 4, H, self.L, -1).transpose(3, 1, 0, 2, 4)
        np.copyto(dh, dy[-1])
        np.copyto(dc, self.zeros_SHR[:size])
        for at in range(self.L - 1, -1, -1):
            p = positions[at]
            tanh = p.tanh
            np.multiply(dh, tanh, out=do)
            np.multiply(dh, p.o, out=u)
            np.multiply(tanh, tanh, out=tanh)
            np.subtract(one, tanh, out=tanh)
            np.multiply(u, tanh, out=u)
            np.add(dc, u, out=dc)
            np.multiply(dc, p.g, out=di)
            np.multiply(dc, p.cell_before, out=df)
            np.multiply(dc, p.i, out=dg)
            np.multiply(dc, p.f, out=dc)
            np.multiply(p.gates, p.gates, out=slope)
            np.subtract(p.ifo, slope_ifo, out=slope_ifo)
            np.subtract(one, slope_g, out=slope_g)
            np.multiply(da, slope, out=da)
            np.copyto(da_L4SHR[at], da)
            if at:
                if size > 1:
                    np.copyto(turned, da)
                np.matmul(W_HG, da_SGR, out=dh)
                if self.sequence:
                    np.copyto(u, dy[at - 1])
                    np.add(dh, u, out=dh)

    def _sums(self, group: slice, z_LSZR: Array) -> None:
        """The gradients of a group of shards, and its dx, from da at all positions."""
        size, columns = group.stop - group.start, self.L * self.setting.rows
        da_SGN = self.da_SGLR[:size].reshape(size, 4 * self.H, columns)
        z_SZLR = self.z_SZLR[:size]
        z_SZN = z_SZLR.reshape(size, self.X + self.H, columns)
        np.copyto(z_SZLR, z_LSZR.transpose(1, 2, 0, 3))
        np.matmul(da_SGN, z_SZN.transpose(0, 2, 1), out=self.dW_SGZ[group])
        np.matmul(da_SGN, self.ones_N, out=self.db_SG[group])
        if self.setting.needs_input_gradient:
            # x is not needed any more: dx takes its place.
            np.matmul(self.W_XG, da_SGN, out=z_SZN[:, : self.X])
            np.copyto(self.dx_SLXR[group], z_SZLR[:, : self.X].transpose(0, 2, 1, 3))
