"""What convolutions and pooling read: windows of an image, gathered into columns or taken tap by tap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias, final

import numpy as np

from worker.nn.layers.pieces import even_cuts
from worker.nn.parameters import Array
from worker.nn.shapes.convolution import Windows

# What makes an array of some shape.
NewArray: TypeAlias = Callable[[tuple[int, ...]], Array]

# Numbers that are worked on at a time: with what they become they stay in the L2 cache.
GATHERED = 1 << 17
TILE = 1 << 16


def around(along: Windows) -> Windows:
    """The windows of y that numbers of x lie in, where the stride is 1: those of the correlation that turns dy into dx."""
    return replace(along, size=along.count, count=along.size, before=(along.taps - 1) * along.dilation - along.before)


@final
@dataclass(slots=True)
class Block:
    """Windows [first, last) of one row of windows, for some shards: how their columns are gathered, and the columns.

    `columns` is (s, G, w, K, R), K being (taps along the width, taps along the height, channels of a group). `moves` are what
    is written and the part of x that it is, both (s, G, w, taps down, C, R); `borders` are zero.
    """

    shards: slice
    row: int
    first: int
    last: int
    columns: Array
    moves: list[tuple[Array, Array]] = field(default_factory=list)
    borders: list[Array] = field(default_factory=list)


@final
class Gather:
    """The columns of all windows of x (S, H, W, G, C, R), block by block, in one scratch array that stays in the cache.

    Where the taps of a row of windows are neighbours, the rows of the image that they read are copied once, (s, G, W', taps
    down, C, R), and the columns of neighbouring windows overlap in it. Otherwise every tap is copied. Where x holds the
    columns as they are, nothing is copied. How a row is cut depends on one shard's shape alone; `beside` is what else is
    worked on for one shard at a time. `scratch` makes the array.
    """

    def __init__(self, x: Array, down: Windows, across: Windows, scratch: NewArray, beside: int = 0) -> None:
        self.x, self.down, self.across = x, down, across
        shards, _, _, self.groups, self.channels, self.rows = x.shape
        span = (across.count - 1) * across.stride + (across.taps - 1) * across.dilation + 1
        self.by_tap = across.count * across.taps <= span or across.dilation > 1 < across.taps
        self.in_place = self._in_place()
        per_window = self.groups * down.taps * self.channels * self.rows * (across.taps if self.by_tap else across.stride)
        parts = list(even_cuts(across.count, GATHERED // per_window))
        widest = parts[0][1] - parts[0][0]
        stacks = list(even_cuts(shards, GATHERED // max(per_window * widest, beside)))
        # The largest block's shards and windows.
        self.shards, self.widest = stacks[0][1] - stacks[0][0], widest
        if self.in_place:
            self.scratch = x
        elif self.by_tap:
            self.scratch = scratch((self.shards, self.groups, widest, across.taps, down.taps, self.channels, self.rows))
        else:
            reach = (widest - 1) * across.stride + across.taps
            self.scratch = scratch((self.shards, self.groups, reach, down.taps, self.channels, self.rows))
        self.blocks = [
            self._block(slice(*stack), row, first, last)
            for stack in stacks
            for row in range(down.count)
            for first, last in parts
        ]

    def fill(self, block: Block) -> Array:
        """The columns of a block; they last until the next is filled."""
        for border in block.borders:
            border.fill(0)
        for to, part in block.moves:
            np.copyto(to, part)
        return block.columns

    def _in_place(self) -> bool:
        down, across = self.down, self.across
        neighbours = across.taps == 1 or (across.dilation == 1 and self.groups == 1)
        return across.borderless and down.borderless and neighbours and down.taps == 1 and self.x.flags.c_contiguous

    def _block(self, shards: slice, row: int, first: int, last: int) -> Block:
        if self.in_place:
            # The columns where they lie.
            line = self.x[shards, self.down.place(row, 0), self.across.place(first, 0) :]
            return Block(shards, row, first, last, self._overlapping(line.transpose(0, 2, 1, 3, 4), last - first))
        own = self.scratch[: shards.stop - shards.start]
        top, bottom = self.down.taps_inside(row)
        if self.by_tap:
            columns = own[:, :, : last - first].reshape(len(own), self.groups, last - first, -1, self.rows)
            block = Block(shards, row, first, last, columns)
            self._move_taps(block, own, top, bottom)
        else:
            block = Block(shards, row, first, last, self._overlapping(own, last - first))
            self._move_rows(block, own, top, bottom)
        block.borders = [border for border in block.borders if border.size]
        return block

    def _overlapping(self, line: Array, count: int) -> Array:
        """Columns of windows that begin `stride` apart, in (s, G, W', ..., C, R)."""
        down, across = self.down, self.across
        shape = (*line.shape[:2], count, across.taps * down.taps * self.channels, self.rows)
        strides = (*line.strides[:2], line.strides[2] * across.stride, *line.strides[-2:])
        return np.lib.stride_tricks.as_strided(line, shape, strides)

    def _lines(self, block: Block, top: int, bottom: int) -> slice:
        """The rows of the image that the taps [top, bottom) of a row of windows read."""
        start, step = self.down.place(block.row, top), self.down.dilation
        return slice(start, start + (bottom - top - 1) * step + 1, step)

    def _source(self, place: tuple[slice, slice, slice]) -> Array:
        return self.x[place].transpose(0, 3, 2, 1, 4, 5)

    def _move_rows(self, block: Block, own: Array, top: int, bottom: int) -> None:
        across, place = self.across, self.across.place(block.first, 0)
        reach = (block.last - block.first - 1) * across.stride + across.taps
        left = min(max(0, -place), reach)
        right = max(left, min(reach, across.size - place))
        block.borders += [own[:, :, :reach, :top], own[:, :, :reach, bottom:]]
        block.borders += [own[:, :, :left, top:bottom], own[:, :, right:reach, top:bottom]]
        if top < bottom and left < right:
            source = block.shards, self._lines(block, top, bottom), slice(place + left, place + right)
            block.moves.append((own[:, :, left:right, top:bottom], self._source(source)))

    def _move_taps(self, block: Block, own: Array, top: int, bottom: int) -> None:
        count = block.last - block.first
        block.borders += [own[:, :, :count, :, :top], own[:, :, :count, :, bottom:]]
        for tap in range(self.across.taps):
            first, last = self.across.windows_inside(tap, block.first, block.last)
            left, right = first - block.first, last - block.first
            block.borders += [own[:, :, :left, tap, top:bottom], own[:, :, right:count, tap, top:bottom]]
            if top < bottom and left < right:
                source = block.shards, self._lines(block, top, bottom), self.across.positions(tap, first, last)
                block.moves.append((own[:, :, left:right, tap, top:bottom], self._source(source)))


def merged(a: Array) -> Array:
    """(S, H, W, C, R) as (S, H, W, C R), a view."""
    return a.reshape(*a.shape[:3], -1)


def add_to(places: Array, part: Array, room: Array) -> None:
    """places += part, a strided view and one of its shape; the sum is formed where both are contiguous, in `room` (2, most)."""
    total, added = room[0, : places.size], room[1, : places.size]
    np.copyto(total.reshape(places.shape), places)
    np.copyto(added.reshape(places.shape), part)
    np.add(total, added, out=total)
    np.copyto(places, total.reshape(places.shape))


@final
@dataclass(frozen=True, slots=True)
class Tap:
    """One tap of a tile's windows: those windows of the tile of which it lies inside the image, and where it lies there."""

    number: tuple[int, int]
    windows: tuple[slice, slice]
    places: tuple[slice, slice]
    whole: bool


@final
@dataclass(frozen=True, slots=True)
class Tile:
    """Windows that are worked on together, and their taps in C order; a tap that lies outside for all of them is left out."""

    shards: slice
    windows: tuple[slice, slice]
    taps: list[Tap]


def tiles(shards: int, down: Windows, across: Windows, numbers: int) -> Iterator[Tile]:
    """All windows in tiles of about `TILE` numbers, of which a window has `numbers`; the cuts depend on one shard alone.

    In C order of (S, H', W', numbers) a tile is contiguous: part of a row, whole rows of a shard, or whole shards.
    """
    width = list(even_cuts(across.count, TILE // numbers))
    most = TILE // (numbers * across.count)
    height = list(even_cuts(down.count, most))
    for stack in even_cuts(shards, most // down.count):
        for rows in height:
            for columns in width:
                windows = slice(*rows), slice(*columns)
                yield Tile(slice(*stack), windows, _taps(down, across, rows, columns))


def _taps(down: Windows, across: Windows, rows: tuple[int, int], columns: tuple[int, int]) -> list[Tap]:
    found = []
    for i in range(down.taps):
        top, bottom = down.windows_inside(i, *rows)
        for j in range(across.taps):
            left, right = across.windows_inside(j, *columns)
            if top < bottom and left < right:
                windows = slice(top - rows[0], bottom - rows[0]), slice(left - columns[0], right - columns[0])
                places = down.positions(i, top, bottom), across.positions(j, left, right)
                found.append(Tap((i, j), windows, places, (top, bottom) == rows and (left, right) == columns))
    return found
