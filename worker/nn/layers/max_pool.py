"""Maximum over windows of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, final

import numpy as np

from worker.nn.layers.layer import Layer, Setting
from worker.nn.layers.relu import bits_of, let_through
from worker.nn.layers.windows import Tap, Tile, add_to, merged, tiles
from worker.nn.parameters import Array
from worker.nn.shapes.convolution import Windows, windows
from worker.nn.streams import Streams
from worker.specs import MaxPoolRecord, ReluRecord


class _Maximum(Protocol):
    """How the maximum is computed, from x to y and from dy to dx, arrays (S, H, W, C R) that it was given."""

    # Whether the backward pass reads x, or y.
    keeps_input: bool
    keeps_output: bool

    def forward(self) -> None:
        """x to y."""
        ...

    def prepare_backward(self, dy: Array, dx: Array) -> None:
        """Gets the arrays of the backward pass."""
        ...

    def backward(self) -> None:
        """dy to dx."""
        ...


@final
class MaxPool(Layer):
    """y[o] = the maximum of the x in window o, per channel, the border never winning, NaN staying NaN; then max(y, 0) where a
    rectifier stands before or behind, which is the same.

    Shapes: x (S, H, W, C, R), y (S, H', W', C, R).
    Backward: dy[o], 0 where a rectifier was closed, goes to the first x of its window, in C order, that is not less than the
    maximum (LeCun et al. 1998; Ranzato et al. 2007). Where windows overlap, sums are formed in the order of tiles, taps and
    windows. Where numbers are NaN it may go to another x of the window.
    Raises UserError if x has not the shape it was built for.
    """

    absorbs_activation: ClassVar[bool] = True
    takes_activation_before: ClassVar[bool] = True

    def __init__(self, record: MaxPoolRecord, setting: Setting) -> None:
        super().__init__(setting)
        down, across = windows(record, setting.shapes.input_shape)
        self.y = setting.memory.output(self.output_shape)
        x, y = merged(setting.x), merged(self.y)
        self.maximum: _Maximum
        if record.window == record.stride == (2, 2) and down.borderless and across.borderless:
            self.maximum = _Quarters(setting, x, y, down, across)
        else:
            self.maximum = _Taps(setting, x, y, down, across)
        training = setting.training and setting.needs_input_gradient
        self.keeps_input = self.maximum.keeps_input and training
        self.keeps_output = self.maximum.keeps_output and training

    def prepare_backward(self, dy: Array) -> Array:
        if not self.setting.needs_input_gradient:
            return dy
        self.dx = self.setting.memory.input_gradient(self.input_shape)
        self.maximum.prepare_backward(merged(dy), merged(self.dx))
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        self.maximum.forward()
        return self.y

    def backward(self, dy: Array) -> Array:
        if not self.setting.needs_input_gradient:
            return dy
        self.maximum.backward()
        return self.dx


@final
class _Rectifier:
    """What a tile does for a rectifier that was absorbed."""

    def __init__(self, setting: Setting, largest: int) -> None:
        self.present = isinstance(setting.activation, ReluRecord)
        self.integers = bits_of(setting.dtype)
        if self.present:
            self.zeros = setting.memory.constant((largest,), 0)
            self.ones = setting.memory.constant((largest,), 1, self.integers)

    def close(self, y: Array) -> None:
        """y = max(y, 0)."""
        if self.present:
            np.maximum(y, self.zeros[: y.size], out=y)

    def let_through(self, dy_bits: Array, y_bits: Array, room: Array) -> Array:
        """dy where the rectifier was open, else 0, in `room`; dy itself where there is none."""
        if not self.present:
            return dy_bits
        let_through(dy_bits, y_bits, self.ones[: y_bits.size], room, room)
        return room


@final
@dataclass(frozen=True, slots=True)
class _Quarter:
    """A tile of windows of two by two: the four x of each, row by row, (s, h, w, N), and y and the losers, flat.

    `right_above` says where, of the two upper x, the right one is the larger; `right_below` likewise; `below` where the larger
    of the two lower x is larger than that of the upper ones.
    """

    x: tuple[Array, ...]
    y: Array
    right_above: Array
    right_below: Array
    below: Array


@final
@dataclass(frozen=True, slots=True)
class _QuarterBack:
    """The same tile in the backward pass, numbers seen as integers: y and dy, flat, and the four parts of dx, (s, h, w, N)."""

    quarter: _Quarter
    y: Array
    dy: Array
    dx: tuple[Array, ...]


@final
class _Quarters:
    """Windows of two by two that do not overlap, none of which lies on the border: a comparison for each of three pairs."""

    keeps_input = False

    def __init__(self, setting: Setting, x: Array, y: Array, down: Windows, across: Windows) -> None:
        self.setting, self.down, self.across = setting, down, across
        memory, numbers = setting.memory, y.shape[3]
        self.tiles = list(tiles(setting.shards, down, across, numbers))
        largest = max(y[(tile.shards, *tile.windows)].size for tile in self.tiles)
        self.rectifier = _Rectifier(setting, largest)
        self.keeps_output = self.rectifier.present
        self.training = setting.training and setting.needs_input_gradient
        masks = [memory.kept(y.shape, np.dtype(bool)) for _ in range(3)] if self.training else [y] * 3
        self.scratch = memory.forward_scratch((3, largest))
        self.quarters = []
        for tile in self.tiles:
            own = y[(tile.shards, *tile.windows)].reshape(-1)
            right_above, right_below, below = (mask[(tile.shards, *tile.windows)].reshape(-1) for mask in masks)
            parts = tuple(x[(tile.shards, *tap.places)] for tap in tile.taps)
            self.quarters.append(_Quarter(parts, own, right_above, right_below, below))

    def forward(self) -> None:
        for quarter in self.quarters:
            left, right, lower = (room[: quarter.y.size] for room in self.scratch)
            shape = quarter.x[0].shape
            # Copied first, so that all comparisons run over contiguous numbers.
            np.copyto(left.reshape(shape), quarter.x[0])
            np.copyto(right.reshape(shape), quarter.x[1])
            self._larger(left, right, quarter.right_above, left)
            np.copyto(lower.reshape(shape), quarter.x[2])
            np.copyto(right.reshape(shape), quarter.x[3])
            self._larger(lower, right, quarter.right_below, lower)
            self._larger(left, lower, quarter.below, quarter.y)
            self.rectifier.close(quarter.y)

    def _larger(self, one: Array, other: Array, other_wins: Array, out: Array) -> None:
        if self.training:
            np.less(one, other, out=other_wins)
        np.maximum(one, other, out=out)

    def prepare_backward(self, dy: Array, dx: Array) -> None:
        integers = self.rectifier.integers
        self.room = self.setting.memory.backward_scratch((4, self.scratch.shape[1]), integers)
        dy_bits, dx_bits = dy.view(integers), dx.view(integers)
        self.back: list[_QuarterBack] = []
        for tile, quarter in zip(self.tiles, self.quarters, strict=True):
            given = dy_bits[(tile.shards, *tile.windows)].reshape(-1)
            parts = tuple(dx_bits[(tile.shards, *tap.places)] for tap in tile.taps)
            self.back.append(_QuarterBack(quarter, quarter.y.view(integers), given, parts))
        # What lies behind the last window.
        self.unread = [dx[:, 2 * self.down.count :], dx[:, :, 2 * self.across.count :]]

    def backward(self) -> None:
        for unread in self.unread:
            unread.fill(0)
        for tile in self.back:
            quarter, (left_above, right_above, left_below, right_below) = tile.quarter, tile.dx
            wins, kept, below, right = (room[: tile.dy.size] for room in self.room)
            d = self.rectifier.let_through(tile.dy, tile.y, kept)
            self._divide(d, quarter.below, wins, below, kept)
            self._divide(kept, quarter.right_above, wins, right, kept)
            np.copyto(left_above, kept.reshape(left_above.shape))
            np.copyto(right_above, right.reshape(left_above.shape))
            self._divide(below, quarter.right_below, wins, right, below)
            np.copyto(left_below, below.reshape(left_above.shape))
            np.copyto(right_below, right.reshape(left_above.shape))

    @staticmethod
    def _divide(d: Array, mask: Array, wins: Array, ones: Array, others: Array) -> None:
        """The bits of d to `ones` where the mask is set, else to `others`, which may be d; 0 elsewhere."""
        np.copyto(wins, mask)
        np.multiply(d, wins, out=ones)
        np.subtract(d, ones, out=others)


@final
class _Taps:
    """Any windows: tap after tap."""

    keeps_input = True
    keeps_output = True

    def __init__(self, setting: Setting, x: Array, y: Array, down: Windows, across: Windows) -> None:
        self.setting, self.x, self.y = setting, x, y
        self.tiles = list(tiles(setting.shards, down, across, y.shape[3]))
        self.largest = max(y[(tile.shards, *tile.windows)].size for tile in self.tiles)
        self.rectifier = _Rectifier(setting, self.largest)
        self.scratch = setting.memory.forward_scratch((self.largest,))
        self.apart = down.apart and across.apart

    def _gather(self, tile: Tile, tap: Tap, into: Array) -> None:
        """x where a tap of each window lies, -inf where that is outside, to (s, h, w, N)."""
        if not tap.whole:
            into.fill(-np.inf)
        np.copyto(into[(slice(None), *tap.windows)], self.x[(tile.shards, *tap.places)])

    def forward(self) -> None:
        for tile in self.tiles:
            y = self.y[(tile.shards, *tile.windows)]
            flat, room = y.reshape(-1), self.scratch[: y.size]
            self._gather(tile, tile.taps[0], y)
            for tap in tile.taps[1:]:
                self._gather(tile, tap, room.reshape(y.shape))
                np.maximum(flat, room, out=flat)
            self.rectifier.close(flat)

    def prepare_backward(self, dy: Array, dx: Array) -> None:
        memory, integers, truth = self.setting.memory, self.rectifier.integers, np.dtype(bool)
        self.dx, self.dy_bits = dx, dy.view(integers)
        self.found, self.sums = memory.backward_scratch((self.largest,)), memory.backward_scratch((2, self.largest))
        self.masks = memory.backward_scratch((3, self.largest), truth)
        self.bits = memory.backward_scratch((3, self.largest), integers)

    def backward(self) -> None:
        self.dx.fill(0)
        for tile in self.tiles:
            self._backward(tile)

    def _backward(self, tile: Tile) -> None:
        part = (tile.shards, *tile.windows)
        y = self.y[part]
        shape, flat, size = y.shape, y.reshape(-1), y.size
        x, still, lose, win = (a[:size] for a in (self.found, *self.masks))
        d_room, wins, kept = (a[:size] for a in self.bits)
        d = self.rectifier.let_through(self.dy_bits[part].reshape(-1), flat.view(self.rectifier.integers), d_room)
        # Windows whose maximum has not been met yet.
        still.fill(True)
        for tap in tile.taps:
            self._gather(tile, tap, x.reshape(shape))
            np.less(x, flat, out=lose)
            if not tap.whole:
                _outside(lose.reshape(shape), tap)
            np.bitwise_and(still, lose, out=lose)
            np.greater(still, lose, out=win)
            np.copyto(still, lose)
            np.copyto(wins, win)
            # Seen as integers of the same width, a product with 0 or 1 clears or keeps a number's bits.
            np.multiply(d, wins, out=kept)
            own = kept.view(self.dx.dtype).reshape(shape)[(slice(None), *tap.windows)]
            to = self.dx[(tile.shards, *tap.places)]
            if self.apart:
                np.copyto(to, own)
            else:
                add_to(to, own, self.sums)


def _outside(mask: Array, tap: Tap) -> None:
    """Sets the mask (s, h, w, N) where the tap lies outside the image."""
    rows, columns = tap.windows
    for strip in (mask[:, : rows.start], mask[:, rows.stop :], mask[:, :, : columns.start], mask[:, :, columns.stop :]):
        strip.fill(True)
