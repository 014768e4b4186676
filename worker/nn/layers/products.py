"""Convolution as products of filters and gathered columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Protocol, final

import numpy as np

from worker.nn.layers.layer import Memory, Setting
from worker.nn.layers.pieces import even_cuts
from worker.nn.layers.windows import GATHERED, Block, Gather, NewArray, around
from worker.nn.parameters import Array
from worker.nn.shapes.convolution import Windows

# With fewer channels a product for each tap along the height is too flat: all of them are one, and their results are added.
LEAST_CHANNELS = 16

# With so many filters of so many numbers dy is turned before the products that make dW: BLAS is faster by more than that costs.
LEAST_TURNED = 32
LEAST_NUMBERS = 64


def turns(filters: int, size: int) -> bool:
    """Whether a convolution of so many filters, with so many numbers each, turns dy from (C', R) to (R, C') for dW."""
    return filters >= LEAST_TURNED and size >= LEAST_NUMBERS


def _grouped(a: Array, groups: int) -> Array:
    """(S, H, W, C, R) as (S, H, W, G, C / G, R), a view."""
    return a.reshape(*a.shape[:3], groups, a.shape[3] // groups, a.shape[4])


def _lines(part: Array, groups: int) -> Array:
    """(s, w, C, R) as (s, G, w, C / G, R), a view."""
    shards, width, channels, rows = part.shape
    return part.reshape(shards, width, groups, channels // groups, rows).transpose(0, 2, 1, 3, 4)


def _line(image: Array, block: Block) -> Array:
    return image[block.shards, block.row, block.first : block.last]


@final
@dataclass(frozen=True, slots=True)
class _Sum:
    """Some windows of a block: their columns (s, G, w, K, R), dy (s, G, w, R, O), the products, and their sum and its total."""

    columns: Array
    dy: Array
    products: Array
    part: Array
    totals: list[tuple[Array, Array]]


@final
@dataclass(frozen=True, slots=True)
class _BlockSums:
    """A block and what is made of it for dW; `turn` is where its dy is turned to first, and from where."""

    block: Block
    turn: tuple[Array, Array] | None
    sums: list[_Sum]


class InputGradient(Protocol):
    """How dx is computed."""

    def run(self) -> None:
        """dy to dx."""
        ...


@final
class Products:
    """A convolution as products of filters and gathered columns, a row of windows at a time.

    K is (kw, kh, C / G), O is C' / G. Forward: y[o] (G, O, R) = W (G, O, K) columns[o] (G, K, R). dW (G, K, O) = sum over o
    of columns[o] dy[o]^T, positions from first to last. dx: see `_Phases` and `_Scattered`.
    """

    def __init__(
        self, setting: Setting, x: Array, y: Array, weight: Array, groups: int, down: Windows, across: Windows
    ) -> None:
        self.memory, self.groups, self.down, self.across, self.weight = setting.memory, groups, down, across, weight
        self.x = _grouped(x, groups)
        self.filters, self.size = y.shape[3] // groups, weight.size // y.shape[3]
        self.W_G1OK = weight.reshape(groups, 1, self.filters, self.size)
        self.gather = Gather(self.x, down, across, setting.memory.forward_scratch)
        self.lines = [(block, _lines(_line(y, block), groups)) for block in self.gather.blocks]

    def forward(self) -> None:
        for block, y in self.lines:
            np.matmul(self.W_G1OK, self.gather.fill(block), out=y)

    def prepare_backward(self, dy: Array, dx: Array | None, dW: Array) -> None:
        scratch = self.memory.backward_scratch
        groups, size, filters = self.groups, self.size, self.filters
        one = groups * size * filters
        # Products of so many windows are summed at a time; it depends on one shard's shape alone.
        most = max(1, GATHERED // one)
        self.back = Gather(self.x, self.down, self.across, scratch, beside=one * min(most, self.across.count))
        widest, stacked = self.back.widest, self.back.shards
        self.products = scratch((stacked, groups, min(most, widest), size, filters))
        self.part = scratch((stacked, groups, size, filters))
        self.sum = scratch((len(dy), groups, size, filters))
        self.dW_SGKO = dW.reshape(len(dy), groups, filters, size).transpose(0, 1, 3, 2)
        turned = scratch((stacked, groups, widest, dy.shape[4], filters)) if turns(filters, size) else None
        self.block_sums = [self._sums_of(block, dy, turned, most) for block in self.back.blocks]
        self.input_gradient: InputGradient | None = None
        if dx is not None:
            self.input_gradient = input_gradient(self.memory, self.weight, groups, self.down, self.across, dy, dx)

    def _sums_of(self, block: Block, dy: Array, turned: Array | None, most: int) -> _BlockSums:
        lines = _lines(_line(dy, block), self.groups).transpose(0, 1, 2, 4, 3)
        if turned is None:
            return _BlockSums(block, None, list(self._sums(block, lines, most)))
        room = turned[: len(lines), :, : lines.shape[2]]
        return _BlockSums(block, (room, lines), list(self._sums(block, room, most)))

    def _sums(self, block: Block, dy: Array, most: int) -> Iterator[_Sum]:
        shards, part = len(dy), self.part[: len(dy)]
        totals = list(zip(self.sum[block.shards], part, strict=True))
        for first, last in even_cuts(dy.shape[2], most):
            products = self.products[:shards, :, : last - first]
            yield _Sum(block.columns[:, :, first:last], dy[:, :, first:last], products, part, totals)

    def backward(self) -> None:
        self.sum.fill(0)
        for of_block in self.block_sums:
            self.back.fill(of_block.block)
            if of_block.turn is not None:
                np.copyto(*of_block.turn)
            for own in of_block.sums:
                np.matmul(own.columns, own.dy, out=own.products)
                np.add.reduce(own.products, axis=2, out=own.part)
                for total, part in own.totals:
                    np.add(total, part, out=total)
        np.copyto(self.dW_SGKO, self.sum)
        if self.input_gradient is not None:
            self.input_gradient.run()


def input_gradient(
    memory: Memory, weight: Array, groups: int, down: Windows, across: Windows, dy: Array, dx: Array
) -> InputGradient:
    """What computes dx (S, H, W, C, R) of dy (S, H', W', C', R) and W (C', kw, kh, C / G)."""
    W_GOJIC = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    scattered = down.taps > 1 and across.stride == 1 and weight.shape[3] < LEAST_CHANNELS
    return (_Scattered if scattered else _Phases)(memory.backward_scratch, W_GOJIC, down, across, dy, dx)


@final
@dataclass(frozen=True, slots=True)
class _Residue:
    """The places h of an axis of x that leave one remainder by the stride, and the taps t that read them.

    `reads` are the windows of dy that such a place takes: those o with o stride + t dilation - before = h, the last tap first.
    """

    places: slice
    taps: slice
    reads: Windows

    @classmethod
    def of(cls, along: Windows, remainder: int) -> _Residue | None:
        """None where no tap reads such a place."""
        shift = remainder + along.before
        taps = [tap for tap in range(along.taps) if (shift - tap * along.dilation) % along.stride == 0]
        if not taps:
            return None
        common = gcd(along.stride, along.dilation)
        step, dilation = along.stride // common, along.dilation // common
        before = (len(taps) - 1) * dilation - (shift - taps[0] * along.dilation) // along.stride
        places = slice(remainder, along.size, along.stride)
        count = len(range(along.size)[places])
        reads = Windows(along.count, count, len(taps), 1, dilation, before)
        stop = taps[0] - step
        return cls(places, slice(taps[-1], stop if stop >= 0 else None, -step), reads)


@final
@dataclass(frozen=True, slots=True)
class _Line:
    """A block of dy's columns, and the filters by which they give a line of dx."""

    gather: Gather
    block: Block
    filters: Array
    dx: Array


@final
class _Phases:
    """dx as correlations of dy with the filters turned around: one for all x with the same remainders by the strides."""

    def __init__(self, scratch: NewArray, W_GOJIC: Array, down: Windows, across: Windows, dy: Array, dx: Array) -> None:
        groups = len(W_GOJIC)
        grouped = _grouped(dy, groups)
        self.filters: list[tuple[Array, Array]] = []
        self.lines: list[_Line] = []
        self.unread: list[Array] = []
        for i in range(min(down.stride, down.size)):
            for j in range(min(across.stride, across.size)):
                own = dx[:, i :: down.stride, j :: across.stride]
                vertical, horizontal = _Residue.of(down, i), _Residue.of(across, j)
                if vertical is None or horizontal is None:
                    self.unread.append(own)
                    continue
                turned = W_GOJIC[:, :, horizontal.taps, vertical.taps].transpose(0, 4, 2, 3, 1)
                filters = scratch(turned.shape)
                self.filters.append((filters, turned))
                gather = Gather(grouped, vertical.reads, horizontal.reads, scratch)
                W_G1CK = filters.reshape(groups, 1, turned.shape[1], -1)
                self.lines += [_Line(gather, block, W_G1CK, _lines(_line(own, block), groups)) for block in gather.blocks]

    def run(self) -> None:
        for unread in self.unread:
            unread.fill(0)
        for filters, turned in self.filters:
            np.copyto(filters, turned)
        for line in self.lines:
            np.matmul(line.filters, line.gather.fill(line.block), out=line.dx)


@final
@dataclass(frozen=True, slots=True)
class _Scatter:
    """A block's product, (G, w, kh C / G, R), and where its parts go: lines of dx that get their first, and other lines."""

    block: Block
    product: Array
    firsts: list[tuple[Array, Array]]
    others: list[tuple[Array, Array, Array, Array]]


@final
class _Scattered:
    """dx where it has few channels: along the width a correlation with the filters turned around, for each tap along the
    height; these are then added where they belong, row of windows after row. The stride along the width is 1."""

    def __init__(self, scratch: NewArray, W_GOJIC: Array, down: Windows, across: Windows, dy: Array, dx: Array) -> None:
        groups, channels = len(W_GOJIC), W_GOJIC.shape[4]
        self.turned = W_GOJIC[:, :, ::-1].transpose(0, 3, 4, 2, 1)
        self.filters = scratch(self.turned.shape)
        self.W_G1MK = self.filters.reshape(groups, 1, down.taps * channels, -1)
        row = Windows(down.count, down.count, 1, 1, 1, 0)
        # One shard at a time, so that lines of dx are contiguous.
        self.gather = Gather(_grouped(dy, groups), row, around(across), scratch, beside=GATHERED)
        rows = dx.shape[4]
        product = scratch((1, groups, self.gather.widest, down.taps * channels, rows))
        added = scratch((self.gather.widest * dx.shape[3] * rows,))
        self.scatters, touched = [], set()
        for block in self.gather.blocks:
            own = product[:, :, : block.last - block.first]
            by_tap = own.reshape(*own.shape[:3], down.taps, channels, rows).transpose(3, 0, 2, 1, 4, 5)
            scatter = _Scatter(block, own, [], [])
            for tap in range(*down.taps_inside(block.row)):
                place = down.place(block.row, tap)
                line = dx[block.shards, place, block.first : block.last]
                part, key = by_tap[tap], (block.shards.start, place, block.first)
                if key in touched:
                    flat = added[: line.size]
                    scatter.others.append((flat.reshape(part.shape), part, line.reshape(-1), flat))
                else:
                    scatter.firsts.append((_grouped(line[:, None], groups)[:, 0], part))
                    touched.add(key)
            self.scatters.append(scatter)
        read = {place for _, place, _ in touched}
        self.unread = [dx[:, place] for place in range(down.size) if place not in read]

    def run(self) -> None:
        for unread in self.unread:
            unread.fill(0)
        np.copyto(self.filters, self.turned)
        for scatter in self.scatters:
            np.matmul(self.W_G1MK, self.gather.fill(scatter.block), out=scatter.product)
            for line, part in scatter.firsts:
                np.copyto(line, part)
            for copy, part, line, flat in scatter.others:
                np.copyto(copy, part)
                np.add(line, flat, out=line)
