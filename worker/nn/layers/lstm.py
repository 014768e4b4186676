"""Long short-term memory."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import numpy as np

from worker.nn.layers.layer import Layer, Setting
from worker.nn.parameters import Array
from worker.nn.shapes import BLOCK_FLOATS
from worker.nn.streams import Streams
from worker.specs import LstmRecord


def by_shard(gates: Array, scratch: Array) -> tuple[Array, Array]:
    """Where the gates (K, S, H, R) of a group stand shard by shard, as a product takes them, (S, K H, R); and that as
    (K, S, H, R). It lies in `scratch`; one shard's is the same memory either way."""
    count, size, units, rows = gates.shape
    flat = gates.reshape(-1) if size == 1 else scratch[: gates.size]
    return flat.reshape(size, count * units, rows), flat.reshape(size, count, units, rows).transpose(1, 0, 2, 3)


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
        size = min(shards, max(1, BLOCK_FLOATS // (4 * H * R)))
        self.groups = [slice(first, min(first + size, shards)) for first in range(0, shards, size)]
        self.size = size
        self.a = memory.forward_scratch((size * 4 * H * R,))
        self.b = memory.forward_scratch((size * 4 * H * R,))
        self.h, self.t = memory.forward_scratch((2, size * H * R))
        self.zeros_SHR = memory.constant((size, H, R), 0)
        self.half = np.array(0.5, setting.dtype)
        self.z: list[Array] = []
        self.steps = [self._steps(group) for group in self.groups]

    def _steps(self, group: slice) -> list[tuple[Any, ...]]:
        """The arrays of a group of shards, and their views at each position, as both passes take them."""
        kept, X, H, R, size = self.setting.memory.kept, self.X, self.H, self.setting.rows, group.stop - group.start
        # Evaluation needs no position but the present one.
        depth = self.L if self.setting.training else 1
        z_LSZR, gates_L4SHR = kept((depth, size, X + H, R)), kept((depth, 4, size, H, R))
        cell_LSHR, tanh_LSHR = kept((depth, size, H, R)), kept((depth, size, H, R))
        self.z.append(z_LSZR)
        steps: list[tuple[Any, ...]] = []
        before = self.zeros_SHR[:size]
        for at in range(self.L):
            here, last = at % depth, at == self.L - 1
            z, gates, cell, tanh = z_LSZR[here], gates_L4SHR[here], cell_LSHR[here], tanh_LSHR[here]
            a, turned = by_shard(gates, self.a)
            h = self.y[group] if last and not self.sequence else self.h[: size * H * R].reshape(size, H, R)
            copies = [] if last else [z_LSZR[(at + 1) % depth, :, X:]]
            if self.sequence:
                copies.append(self.y[group, at])
            steps.append((z, z[:, :X], a, turned, gates, gates[:3], *gates, before, cell, tanh, h, copies))
            before = cell
        return steps

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
        for group, steps in zip(self.groups, self.steps, strict=True):
            self._forward(x_SLXR[group], steps)
        return self.y

    def _forward(self, x_SLXR: Array, steps: list[tuple[Any, ...]]) -> None:
        W, half, size = self.W_GZ, self.half, len(x_SLXR)
        shape = (size, self.H, self.setting.rows)
        t = self.t[: math.prod(shape)].reshape(shape)
        b = self.b[: 4 * math.prod(shape)].reshape(4, *shape)
        np.copyto(b, self.b_4H)
        np.copyto(steps[0][0][:, self.X :], self.zeros_SHR[:size])
        for at, (z, z_x, a, turned, gates, ifo, i, f, o, g, before, cell, tanh, h, copies) in enumerate(steps):
            np.copyto(z_x, x_SLXR[:, at])
            np.matmul(W, z, out=a)
            if size > 1:
                np.copyto(gates, turned)
            np.add(gates, b, out=gates)
            np.multiply(ifo, half, out=ifo)
            np.tanh(gates, out=gates)
            np.multiply(ifo, half, out=ifo)
            np.add(ifo, half, out=ifo)
            np.multiply(f, before, out=cell)
            np.multiply(i, g, out=t)
            np.add(cell, t, out=cell)
            np.tanh(cell, out=tanh)
            np.multiply(o, tanh, out=h)
            for copy in copies:
                np.copyto(copy, h)

    def backward(self, dy: Array) -> Array:
        for number, group in enumerate(self.groups):
            self._through_time(self.steps[number], self.dy_of[number], group.stop - group.start)
            self._sums(group, self.z[number])
        return self.dx_SLXR if self.setting.needs_input_gradient else dy

    def _through_time(self, steps: list[tuple[Any, ...]], dy: list[Array], size: int) -> None:
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
            _, _, _, _, gates, ifo, i, f, o, g, before, _, tanh, _, _ = steps[at]
            np.multiply(dh, tanh, out=do)
            np.multiply(dh, o, out=u)
            np.multiply(tanh, tanh, out=tanh)
            np.subtract(one, tanh, out=tanh)
            np.multiply(u, tanh, out=u)
            np.add(dc, u, out=dc)
            np.multiply(dc, g, out=di)
            np.multiply(dc, before, out=df)
            np.multiply(dc, i, out=dg)
            np.multiply(dc, f, out=dc)
            np.multiply(gates, gates, out=slope)
            np.subtract(ifo, slope_ifo, out=slope_ifo)
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
