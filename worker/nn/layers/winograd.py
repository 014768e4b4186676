"""Convolution with three taps down and no stride: four rows of windows by six products instead of twelve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np

from worker.nn.layers.layer import Setting
from worker.nn.layers.pieces import even_cuts
from worker.nn.layers.products import turns
from worker.nn.layers.windows import NewArray, around
from worker.nn.parameters import Array
from worker.nn.shapes.convolution import Windows

# Numbers of a row that are worked on at a time: six rows and what they become lie in the second-level cache.
LINE = 1 << 15

# With fewer channels on either side, or fewer rows of windows, the sums around the products cost more than is saved.
LEAST_CHANNELS = 8
LEAST_ROWS = 3

Lines: TypeAlias = tuple[Array, ...]


def fits(down: Windows, across: Windows, groups: int, channels: int, filters: int) -> bool:
    """Whether `Winograd` computes such a convolution, and saves time."""
    plain = down.stride == down.dilation == across.stride == across.dilation == groups == 1
    return plain and down.taps == 3 and down.count >= LEAST_ROWS and min(channels, filters) >= LEAST_CHANNELS


@final
@dataclass(frozen=True, slots=True)
class _Four:
    """Four rows of windows: the six rows of x that they read, flat, and the four lines of y, as (w, C', R) and flat."""

    rows: Lines
    lines: Lines
    flat: Lines


@final
class _Part:
    """Windows [first, last) of each row of windows of x (S, H, W, C, R).

    What a product reads is written to `inside`, flat, between borders of zeros; `columns` (w, kw C, R) are its windows, which
    overlap. `shards` are the fours of each shard. Of the last four, the lines that y does not have are `missing`.
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        down: Windows,
        across: Windows,
        cut: tuple[int, int],
        room: Array,
        missing: Lines,
        zeros: Array,
    ) -> None:
        (first, last), (_, height, _, channels, rows) = cut, x.shape
        place, reach, one = across.place(first, 0), last - first + across.taps - 1, channels * rows
        left = min(max(0, -place), reach)
        right = max(left, min(reach, across.size - place))
        line = room[0, : reach * one].reshape(reach, channels, rows)
        self.inside, self.borders = room[0, left * one : right * one], (line[:left], line[right:])
        shape = (last - first, across.taps * channels, rows)
        self.columns = np.lib.stride_tricks.as_strided(line, shape, line.strides)
        self.shape = (last - first, *y.shape[3:])
        self.size = self.shape[0] * self.shape[1] * self.shape[2]
        self.room = tuple(own[: self.inside.size] for own in room[1:])
        self.four = np.full((), 4, x.dtype)

        nothing = zeros[: self.inside.size]
        spare = tuple(own[: self.size].reshape(self.shape) for own in missing)
        self.shards: list[list[_Four]] = []
        for image, result in zip(x[:, :, place + left : place + right], y[:, :, first:last], strict=True):
            flat = image.reshape(height, -1)
            fours = []
            for row in range(0, down.count, 4):
                top = down.place(row, 0)
                read = tuple(flat[at] if 0 <= at < height else nothing for at in range(top, top + 6))
                lines = tuple(result[row : row + 4])
                lines += spare[: 4 - len(lines)]
                fours.append(_Four(read, lines, tuple(own.reshape(-1) for own in lines)))
            self.shards.append(fours)

    def clear(self) -> None:
        """Makes the borders zero; other parts share the memory."""
        for border in self.borders:
            border.fill(0)

    def transform(self, rows: Lines) -> Iterator[int]:
        """Writes what product number 1, 2, 3, 4, 0 and 5 reads to `inside`, one at a time, and says which it is."""
        (d_0, d_1, d_2, d_3, d_4, d_5), v, (p, q, r), four = rows, self.inside, self.room, self.four
        np.multiply(d_2, four, out=p)
        np.subtract(d_4, p, out=p)
        np.multiply(d_1, four, out=q)
        np.subtract(d_3, q, out=q)
        np.add(p, q, out=v)
        yield 1
        np.subtract(p, q, out=v)
        yield 2
        np.subtract(d_4, d_2, out=p)
        np.subtract(d_3, d_1, out=r)
        np.add(r, r, out=q)
        np.add(p, q, out=v)
        yield 3
        np.subtract(p, q, out=v)
        yield 4
        np.subtract(d_0, d_2, out=q)
        np.multiply(q, four, out=q)
        np.add(q, p, out=v)
        yield 0
        np.subtract(d_5, d_3, out=v)
        np.multiply(r, four, out=r)
        np.subtract(v, r, out=v)
        yield 5


def _cuts(y: Array, across: Windows, channels: int) -> list[tuple[int, int]]:
    """How each row of windows is cut, [first, last), the first part being a widest; `channels` are those of x."""
    return list(even_cuts(across.count, LINE // (max(channels, y.shape[3]) * y.shape[4])))


def _parts(x: Array, y: Array, down: Windows, across: Windows, scratch: NewArray, missing: Lines, zeros: Array) -> list[_Part]:
    """All windows, in parts that are cut by one shard's shape alone."""
    cuts = _cuts(y, across, x.shape[3])
    widest = cuts[0][1] - cuts[0][0]
    room = scratch((4, (widest + across.taps - 1) * x.shape[3] * x.shape[4]))
    return [_Part(x, y, down, across, cut, room, missing, zeros) for cut in cuts]


def _line(y: Array, across: Windows, channels: int) -> int:
    """The numbers of y in the widest part, of an x of so many channels."""
    first, last = _cuts(y, across, channels)[0]
    return y[0, 0, first:last].size


@final
class _Rows:
    """y of x, of four rows of windows at a time, which read the rows d of x by the filters' rows g (Winograd 1980; Lavin and
    Gray 2016, with the points 0, 1, -1, 2, -2 and infinity):

    v_0 = 4 (d_0 - d_2) + (d_4 - d_2)          U_0 = g_0 / 4
    v_1 = (d_4 - 4 d_2) + (d_3 - 4 d_1)        U_1 = ((g_0 + g_2) + g_1) (-1 / 6)
    v_2 = (d_4 - 4 d_2) - (d_3 - 4 d_1)        U_2 = ((g_0 + g_2) - g_1) (-1 / 6)
    v_3 = (d_4 - d_2) + 2 (d_3 - d_1)          U_3 = ((g_0 + 4 g_2) + 2 g_1) / 24
    v_4 = (d_4 - d_2) - 2 (d_3 - d_1)          U_4 = ((g_0 + 4 g_2) - 2 g_1) / 24
    v_5 = (d_5 - d_3) - 4 (d_3 - d_1)          U_5 = g_2
    m_k = U_k v_k
    a = (m_1 + m_2) + (m_3 + m_4)              y_1 = (m_1 - m_2) + 2 (m_3 - m_4)
    y_0 = a + m_0                              y_2 = 3 (m_3 + m_4) + a
    y_3 = 3 (2 (m_3 - m_4)) + y_1 + m_5

    Shapes: x (S, H, W, C, R), filters (C', kw, 3, C), U (6, C', kw C), y (S, H', W', C', R).
    """

    def __init__(
        self, x: Array, y: Array, filters: Array, down: Windows, across: Windows, scratch: NewArray, constant: NewArray
    ) -> None:
        self.filters = filters.transpose(2, 0, 1, 3)
        self.U = scratch((6, filters.shape[0], across.taps * filters.shape[3]))
        self.terms = scratch((3, *self.U.shape[1:]))
        self.three, self.four = (np.full((), value, x.dtype) for value in (3, 4))
        self.sixth, self.twentyfourth = (np.full((), value, x.dtype) for value in (-1 / 6, 1 / 24))
        self.quarter = np.full((), 1 / 4, x.dtype)
        widest = _line(y, across, x.shape[3])
        self.room = scratch((2, widest))
        self.parts = _parts(x, y, down, across, scratch, tuple(scratch((3, widest))), constant((x[0, 0].size,)))

    def _transform(self) -> None:
        U, (outer, middle, scaled), shape = self.U, self.terms, self.filters.shape[1:]
        for tap, to in enumerate((U[0], middle, U[5])):
            np.copyto(to.reshape(shape), self.filters[tap])
        np.add(U[0], U[5], out=outer)
        np.add(outer, middle, out=U[1])
        np.subtract(outer, middle, out=U[2])
        np.multiply(U[1:3], self.sixth, out=U[1:3])
        np.multiply(U[5], self.four, out=scaled)
        np.add(U[0], scaled, out=outer)
        np.add(middle, middle, out=middle)
        np.add(outer, middle, out=U[3])
        np.subtract(outer, middle, out=U[4])
        np.multiply(U[3:5], self.twentyfourth, out=U[3:5])
        np.multiply(U[0], self.quarter, out=U[0])

    def run(self) -> None:
        """x to y."""
        self._transform()
        for part in self.parts:
            part.clear()
            for fours in part.shards:
                for four in fours:
                    self._four(part, four)

    def _four(self, part: _Part, four: _Four) -> None:
        U_0, U_1, U_2, U_3, U_4, U_5 = self.U
        m, other = (room[: part.size] for room in self.room)
        columns, m_lines, other_lines = part.columns, m.reshape(part.shape), other.reshape(part.shape)
        y_0, y_1, y_2, y_3 = four.flat
        steps = part.transform(four.rows)
        next(steps)
        np.matmul(U_1, columns, out=m_lines)
        next(steps)
        np.matmul(U_2, columns, out=other_lines)
        np.add(m, other, out=y_0)
        np.subtract(m, other, out=y_1)
        next(steps)
        np.matmul(U_3, columns, out=m_lines)
        next(steps)
        np.matmul(U_4, columns, out=other_lines)
        np.add(m, other, out=y_2)
        np.subtract(m, other, out=y_3)
        next(steps)
        np.matmul(U_0, columns, out=m_lines)
        np.add(y_0, y_2, out=y_0)
        np.multiply(y_2, self.three, out=y_2)
        np.add(y_2, y_0, out=y_2)
        np.add(y_0, m, out=y_0)
        next(steps)
        np.matmul(U_5, columns, out=m_lines)
        np.add(y_3, y_3, out=y_3)
        np.add(y_1, y_3, out=y_1)
        np.multiply(y_3, self.three, out=y_3)
        np.add(y_3, y_1, out=y_3)
        np.add(y_3, m, out=y_3)


@final
class Winograd:
    """The convolution, its dW by the same products the other way, and its dx as that of dy with the filters turned around.

    Shapes: x (S, H, W, C, R), W (C', kw, 3, C), y (S, H', W', C', R). Backward, with v and U as in `_Rows`:
    dU_k = sum over fours of rows, and over a line's windows, of v_k dm_k^T, where
    dm_0 = dy_0, dm_1 and dm_2 = (dy_0 + dy_2) +- (dy_1 + dy_3), dm_3 and dm_4 = (dy_0 + 4 dy_2) +- 2 (dy_1 + 4 dy_3),
    dm_5 = dy_3; then dg_0 = dU_0 / 4 - (dU_1 + dU_2) / 6 + (dU_3 + dU_4) / 24, dg_1 = (dU_3 - dU_4) / 12 - (dU_1 - dU_2) / 6,
    dg_2 = dU_5 + (dU_3 + dU_4) / 6 - (dU_1 + dU_2) / 6.
    """

    def __init__(self, setting: Setting, x: Array, y: Array, weight: Array, down: Windows, across: Windows) -> None:
        self.memory, self.x, self.weight, self.down, self.across = setting.memory, x, weight, down, across
        self.rows = _Rows(x, y, weight, down, across, setting.memory.forward_scratch, self._zeros)

    def _zeros(self, shape: tuple[int, ...]) -> Array:
        return self.memory.constant(shape, 0)

    def forward(self) -> None:
        self.rows.run()

    def prepare_backward(self, dy: Array, dx: Array | None, dW: Array) -> None:
        scratch = self.memory.backward_scratch
        filters, taps, _, channels = self.weight.shape
        widest = _line(dy, self.across, channels)
        self.parts = _parts(
            *(self.x, dy, self.down, self.across, scratch), (self._zeros((widest,)),) * 3, self._zeros((self.x[0, 0].size,))
        )
        self.products = scratch((self.parts[0].shape[0], taps * channels, filters))
        self.room = scratch((3, widest))
        self.dU = scratch((6, taps * channels, filters))
        self.part = scratch((taps * channels, filters))
        self.turned = scratch((4, widest)) if turns(filters, taps * channels) else None
        self.dW = dW.transpose(0, 3, 2, 4, 1)
        self.dx: _Rows | None = None
        if dx is not None:
            turned = self.weight.transpose(3, 1, 2, 0)[:, ::-1, ::-1]
            self.dx = _Rows(dy, dx, turned, around(self.down), around(self.across), scratch, self._zeros)

    def backward(self) -> None:
        dU = self.dU
        for shard, dW in enumerate(self.dW):
            dU.fill(0)
            for part in self.parts:
                part.clear()
                for four in part.shards[shard]:
                    for number, dm in zip(part.transform(four.rows), self._transform(part, four), strict=True):
                        products = self.products[: len(dm)]
                        np.matmul(part.columns, dm, out=products)
                        np.add.reduce(products, axis=0, out=self.part)
                        np.add(dU[number], self.part, out=dU[number])
            self._filters(dW, dU)
        if self.dx is not None:
            self.dx.run()

    def _transform(self, part: _Part, four: _Four) -> Iterator[Array]:
        """dm (w, R, C'), in the order of `_Part.transform`."""
        windows, filters, rows = part.shape
        flat, even, odd = (room[: part.size] for room in self.room)
        if self.turned is None:
            (dy_0, dy_1, dy_2, dy_3), dm = four.flat, flat.reshape(part.shape).transpose(0, 2, 1)
            first, last = (four.lines[line].transpose(0, 2, 1) for line in (0, 3))
        else:
            dy_0, dy_1, dy_2, dy_3 = (room[: part.size] for room in self.turned)
            first, second, third, last = (own.reshape(windows, rows, filters) for own in (dy_0, dy_1, dy_2, dy_3))
            for to, line in zip((first, second, third, last), four.lines, strict=True):
                np.copyto(to, line.transpose(0, 2, 1))
            dm = flat.reshape(windows, rows, filters)
        scale = part.four
        np.add(dy_0, dy_2, out=even)
        np.add(dy_1, dy_3, out=odd)
        np.add(even, odd, out=flat)
        yield dm
        np.subtract(even, odd, out=flat)
        yield dm
        np.multiply(dy_2, scale, out=even)
        np.add(dy_0, even, out=even)
        np.multiply(dy_3, scale, out=odd)
        np.add(dy_1, odd, out=odd)
        np.add(odd, odd, out=odd)
        np.add(even, odd, out=flat)
        yield dm
        np.subtract(even, odd, out=flat)
        yield dm
        yield first
        yield last

    def _filters(self, dW: Array, dU: Array) -> None:
        """dU (6, kw C, C') to dW (3, kw, C, C'); dU is overwritten."""
        rows, shape, part = self.rows, dW.shape[1:], self.part
        np.multiply(dU[1:3], rows.sixth, out=dU[1:3])
        np.subtract(dU[1], dU[2], out=part)
        np.add(dU[1], dU[2], out=dU[1])
        # dU_1 is the sum, dU_2 free.
        np.multiply(dU[3:5], rows.twentyfourth, out=dU[3:5])
        np.subtract(dU[3], dU[4], out=dU[2])
        np.add(dU[2], dU[2], out=dU[2])
        np.add(dU[2], part, out=part)
        np.copyto(dW[1], part.reshape(shape))
        np.add(dU[3], dU[4], out=dU[3])
        np.multiply(dU[3], rows.four, out=dU[4])
        np.add(dU[5], dU[4], out=dU[5])
        np.add(dU[5], dU[1], out=dU[5])
        np.copyto(dW[2], dU[5].reshape(shape))
        np.multiply(dU[0], rows.quarter, out=dU[0])
        np.add(dU[0], dU[1], out=dU[0])
        np.add(dU[0], dU[3], out=dU[0])
        np.copyto(dW[0], dU[0].reshape(shape))
