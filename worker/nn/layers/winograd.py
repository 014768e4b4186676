"""Convolution with three taps down and no stride, two rows of windows for four products instead of six (Winograd 1980)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import final

import numpy as np

from worker.nn.layers.layer import Setting
from worker.nn.layers.windows import around, chunks
from worker.nn.parameters import Array
from worker.nn.shapes.convolution import Windows

# Numbers of a row that are worked on at a time: four rows and what they become lie in the second-level cache.
LINE = 1 << 15

# With fewer channels on either side the sums between the products cost more than two products.
LEAST_CHANNELS = 8


def fits(down: Windows, across: Windows, groups: int, channels: int, filters: int) -> bool:
    """Whether `Winograd` computes such a convolution, and saves time."""
    plain = down.stride == down.dilation == across.stride == across.dilation == 1
    return plain and down.taps == 3 and groups == 1 and min(channels, filters) >= LEAST_CHANNELS


@final
@dataclass(frozen=True, slots=True)
class _Pair:
    """Windows of two neighbouring rows: the four rows of x that they read, (n,), and the lines of y, (w, C', R) and flat.

    The second line is None where y ends with the first.
    """

    rows: tuple[Array, Array, Array, Array]
    first: Array
    flat_first: Array
    second: Array | None
    flat_second: Array | None


@final
@dataclass(frozen=True, slots=True)
class _Part:
    """Windows [first, last) of each row of windows, and the pairs of each shard.

    What one product reads of a row of x is written to `inside`, flat, between `borders` of zeros; `columns` (w, kw C, R) are its
    windows, which overlap.
    """

    inside: Array
    borders: tuple[Array, ...]
    columns: Array
    pairs: list[list[_Pair]] = field(default_factory=list)

    def clear(self) -> None:
        """Makes the borders zero."""
        for border in self.borders:
            border.fill(0)


def _parts(
    x: Array, y: Array, down: Windows, across: Windows, line: Array, constant: Callable[[tuple[int, ...], float], Array]
) -> Iterator[_Part]:
    """All windows of x (S, H, W, C, R), in parts; `line` is room for the widest."""
    shards, height, _, channels, rows = x.shape
    one = channels * rows
    for begin, end in chunks(across.count, LINE // (max(channels, y.shape[3]) * rows)):
        place, reach = across.place(begin, 0), end - begin + across.taps - 1
        left = min(max(0, -place), reach)
        right = max(left, min(reach, across.size - place))
        own = line[: reach * one].reshape(reach, channels, rows)
        shape, strides = (end - begin, across.taps * channels, rows), own.strides
        columns = np.lib.stride_tricks.as_strided(own, shape, strides)
        part = _Part(line[left * one : right * one], (own[:left], own[right:]), columns)
        zeros = constant(((right - left) * one,), 0)

        for shard in range(shards):
            image = x[shard, :, place + left : place + right].reshape(height, -1)
            lines = y[shard, :, begin:end]
            pairs = []
            for row in range(0, down.count, 2):
                top = down.place(row, 0)
                read = tuple(image[at] if 0 <= at < height else zeros for at in range(top, top + 4))
                two = lines[row + 1] if row + 1 < down.count else None
                flat = None if two is None else two.reshape(-1)
                pairs.append(_Pair(read, lines[row], lines[row].reshape(-1), two, flat))  # type: ignore[arg-type]
            part.pairs.append(pairs)
        yield part


def _line(x: Array, y: Array, across: Windows, scratch: Callable[[tuple[int, ...]], Array]) -> Array:
    """Room for what a product reads of a row of x."""
    channels, rows = x.shape[3:]
    begin, end = next(iter(chunks(across.count, LINE // (max(channels, y.shape[3]) * rows))))
    return scratch(((end - begin + across.taps - 1) * channels * rows,))


@final
class _Rows:
    """y of x, two rows at a time: y_0 = U_0 v_0 + U_1 v_1 + U_2 v_2, y_1 = U_1 v_1 - U_2 v_2 - U_3 v_3, of the rows d of x

    v_0 = d_0 - d_2, v_1 = d_1 + d_2, v_2 = d_2 - d_1, v_3 = d_1 - d_3, and the filters' rows g
    U_0 = g_0, U_1 = (g_0 + g_2 + g_1) / 2, U_2 = (g_0 + g_2 - g_1) / 2, U_3 = g_2.
    Shapes: x (S, H, W, C, R), filters (C', kw, 3, C), U (4, C', kw C), y (S, H', W', C', R).
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        filters: Array,
        down: Windows,
        across: Windows,
        scratch: Callable[[tuple[int, ...]], Array],
        constant: Callable[[tuple[int, ...], float], Array],
    ) -> None:
        self.filters = filters.transpose(2, 0, 1, 3)
        self.U = scratch((4, filters.shape[0], across.taps * filters.shape[3]))
        self.middle = scratch((2, *self.U.shape[1:]))
        self.half = np.full((), 0.5, x.dtype)
        self.parts = list(_parts(x, y, down, across, _line(x, y, across, scratch), constant))
        widest = max(part.pairs[0][0].flat_first.size for part in self.parts)
        self.sums = scratch((2, widest))

    def _transform(self) -> None:
        U, (outer, middle), shape = self.U, self.middle, self.filters.shape[1:]
        for tap, to in enumerate((U[0], middle, U[3])):
            np.copyto(to.reshape(shape), self.filters[tap])
        np.add(U[0], U[3], out=outer)
        np.add(outer, middle, out=U[1])
        np.subtract(outer, middle, out=U[2])
        np.multiply(U[1:3], self.half, out=U[1:3])

    def run(self) -> None:
        """x to y."""
        self._transform()
        U_0, U_1, U_2, U_3 = self.U
        for part in self.parts:
            part.clear()
            v, columns = part.inside, part.columns
            shape = part.pairs[0][0].first.shape
            flat, other_flat = self.sums[:, : shape[0] * shape[1] * shape[2]]
            one, other = flat.reshape(shape), other_flat.reshape(shape)
            for pairs in part.pairs:
                for pair in pairs:
                    d_0, d_1, d_2, d_3 = pair.rows
                    y_0, y_1 = pair.flat_first, pair.flat_second
                    np.subtract(d_0, d_2, out=v)
                    np.matmul(U_0, columns, out=pair.first)
                    np.add(d_1, d_2, out=v)
                    np.matmul(U_1, columns, out=one)
                    np.subtract(d_2, d_1, out=v)
                    np.matmul(U_2, columns, out=other)
                    np.add(y_0, flat, out=y_0)
                    np.add(y_0, other_flat, out=y_0)
                    if y_1 is None:
                        continue
                    np.subtract(flat, other_flat, out=y_1)
                    np.subtract(d_1, d_3, out=v)
                    np.matmul(U_3, columns, out=one)
                    np.subtract(y_1, flat, out=y_1)


@final
class Winograd:
    """The convolution, its dW by the same products the other way, and its dx as that of dy with the filters turned around.

    Shapes: x (S, H, W, C, R), W (C', kw, 3, C), y (S, H', W', C', R). Backward, with v and U as in `_Rows`, summed over the
    pairs of rows: dU_0 = dy_0 v_0^T, dU_1 = (dy_0 + dy_1) v_1^T, dU_2 = (dy_0 - dy_1) v_2^T, dU_3 = dy_1 v_3^T;
    dg_0 = dU_0 + (dU_1 + dU_2) / 2, dg_1 = (dU_1 - dU_2) / 2, dg_2 = (dU_1 + dU_2) / 2 - dU_3.
    """

    def __init__(self, setting: Setting, x: Array, y: Array, weight: Array, down: Windows, across: Windows) -> None:
        self.memory, self.x, self.weight, self.down, self.across = setting.memory, x, weight, down, across
        self.rows = _Rows(x, y, weight, down, across, setting.memory.forward_scratch, setting.memory.constant)

    def forward(self) -> None:
        self.rows.run()

    def prepare_backward(self, dy: Array, dx: Array | None, dW: Array) -> None:
        scratch, constant = self.memory.backward_scratch, self.memory.constant
        filters, taps, _, channels = self.weight.shape
        line = _line(self.x, dy, self.across, scratch)
        self.parts = list(_parts(self.x, dy, self.down, self.across, line, constant))
        widest = max(part.pairs[0][0].first.shape[0] for part in self.parts)
        self.products = scratch((widest, filters, taps * channels))
        self.sums = scratch((widest * filters * dy.shape[4],))
        self.dU = scratch((dy.shape[0], 4, filters, taps * channels))
        self.part = scratch((filters, taps * channels))
        self.dW = dW.transpose(0, 3, 1, 2, 4)
        self.dx: _Rows | None = None
        if dx is not None:
            turned = self.weight.transpose(3, 1, 2, 0)[:, ::-1, ::-1]
            self.dx = _Rows(dy, dx, turned, around(self.down), around(self.across), scratch, constant)

    def backward(self) -> None:
        self.dU.fill(0)
        for part in self.parts:
            part.clear()
            for dU, pairs in zip(self.dU, part.pairs, strict=True):
                for pair in pairs:
                    self._add_pair(part, pair, dU)
        for dW, dU in zip(self.dW, self.dU, strict=True):
            self._filters(dW, dU)
        if self.dx is not None:
            self.dx.run()

    def _add_pair(self, part: _Part, pair: _Pair, dU: Array) -> None:
        v, (d_0, d_1, d_2, d_3) = part.inside, pair.rows
        dy_0, dy_1 = pair.flat_first, pair.flat_second
        flat = self.sums[: dy_0.size]
        total = flat.reshape(pair.first.shape)
        np.subtract(d_0, d_2, out=v)
        self._add(part, pair.first, dU[0])
        np.add(d_1, d_2, out=v)
        if dy_1 is None or pair.second is None:
            self._add(part, pair.first, dU[1])
            np.subtract(d_2, d_1, out=v)
            self._add(part, pair.first, dU[2])
            return
        np.add(dy_0, dy_1, out=flat)
        self._add(part, total, dU[1])
        np.subtract(d_2, d_1, out=v)
        np.subtract(dy_0, dy_1, out=flat)
        self._add(part, total, dU[2])
        np.subtract(d_1, d_3, out=v)
        self._add(part, pair.second, dU[3])

    def _add(self, part: _Part, dy: Array, dU: Array) -> None:
        products = self.products[: len(dy)]
        np.matmul(dy, part.columns.transpose(0, 2, 1), out=products)
        np.add.reduce(products, axis=0, out=self.part)
        np.add(dU, self.part, out=dU)

    def _filters(self, dW: Array, dU: Array) -> None:
        """dU (4, C', kw C) to dW (3, C', kw, C); dU is overwritten."""
        shape, half, part = dW.shape[1:], self.rows.half, self.part
        outer, inner = dU[1], dU[2]
        np.multiply(dU[1:3], half, out=dU[1:3])
        np.subtract(outer, inner, out=part)
        np.copyto(dW[1], part.reshape(shape))
        np.add(outer, inner, out=part)
        np.add(dU[0], part, out=outer)
        np.copyto(dW[0], outer.reshape(shape))
        np.subtract(part, dU[3], out=inner)
        np.copyto(dW[2], inner.reshape(shape))
