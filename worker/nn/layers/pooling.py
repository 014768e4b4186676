"""Maximum and mean over windows of an image."""

from __future__ import annotations

from typing import final

import numpy as np

from worker.nn.layers.layer import Layer, Setting
from worker.nn.layers.windows import Tile, tiles
from worker.nn.parameters import Array
from worker.nn.shapes.convolution import windows
from worker.nn.streams import Streams
from worker.specs import AveragePoolRecord, MaxPoolRecord


class _Pool(Layer):
    """What both have in common: arrays as (S, H, W, C R), and the tiles of windows."""

    def __init__(self, record: MaxPoolRecord | AveragePoolRecord, setting: Setting) -> None:
        super().__init__(setting)
        self.down, self.across = windows(record, setting.shapes.input_shape)
        self.y = setting.memory.output(self.output_shape)
        self.numbers = setting.shapes.output_shape[2] * setting.rows
        self.x_SHWN, self.y_SHWN = self.merged(setting.x), self.merged(self.y)
        self.tiles = list(tiles(setting.shards, self.down, self.across, self.numbers))
        self.largest = max(self.y_SHWN[(tile.shards, *tile.windows)].size for tile in self.tiles)
        # No number of x lies in two windows.
        self.apart = self.down.stride >= self.down.taps and self.across.stride >= self.across.taps
        self.zero = np.zeros((), setting.dtype)

    def merged(self, a: Array) -> Array:
        """(S, H, W, C, R) as (S, H, W, C R), a view."""
        return a.reshape(*a.shape[:3], self.numbers)

    @property
    def covered(self) -> bool:
        """Whether each number of x lies in exactly one window."""
        axes = (self.down, self.across)
        return all(
            along.stride == along.taps and along.size == along.count * along.taps and along.before == 0 for along in axes
        )

    @staticmethod
    def _shaped(scratch: Array, like: Array) -> Array:
        return scratch[: like.size].reshape(like.shape)


@final
class MaxPool(_Pool):
    """y[o] = the maximum of the x in window o, per channel; the border never wins, NaN stays NaN.

    Shapes: x (S, H, W, C, R), y (S, H', W', C, R).
    Backward: dy[o] goes to the first x of its window, in C order, that is not less than y[o] (LeCun et al. 1998; Ranzato et
    al. 2007). Where windows overlap, sums are formed in the order of tiles, taps and windows.
    Raises UserError if x has not the shape it was built for.
    """

    keeps_input = True
    keeps_output = True

    def __init__(self, record: MaxPoolRecord, setting: Setting) -> None:
        super().__init__(record, setting)
        self.lowest = np.full((), -np.inf, setting.dtype)
        self.steps = [self._step(tile) for tile in self.tiles]

    def _step(self, tile: Tile) -> tuple[Array, tuple[Array, Array] | None, list[tuple[Array, Array]]]:
        """The tile's y; the first two taps, if both lie inside for all its windows; the other taps."""
        y = self.y_SHWN[(tile.shards, *tile.windows)]
        views = [(y[(slice(None), *tap.windows)], self.x_SHWN[(tile.shards, *tap.places)]) for tap in tile.taps]
        if len(tile.taps) > 1 and tile.taps[0].whole and tile.taps[1].whole:
            return y, (views[0][1], views[1][1]), views[2:]
        return y, None, views

    def prepare_backward(self, dy: Array) -> Array:
        if not self.setting.needs_input_gradient:
            return dy
        memory, dtype = self.setting.memory, self.setting.dtype
        integers, truth = np.dtype(f"i{dtype.itemsize}"), np.dtype(bool)
        self.dx = memory.input_gradient(self.input_shape)
        # Seen as integers of the same width, a product with 0 or 1 clears or keeps a number's bits.
        dx, dy_bits = self.merged(self.dx), self.merged(dy).view(integers)
        opens, loses, wins = (memory.backward_scratch((self.largest,), truth) for _ in range(3))
        kept = memory.backward_scratch((self.largest,), integers)
        added = memory.backward_scratch((0 if self.apart else self.largest,))
        self.back = []
        for tile in self.tiles:
            y, d = (a[(tile.shards, *tile.windows)] for a in (self.y_SHWN, dy_bits))
            open_ = self._shaped(opens, y)
            taps = []
            for tap in tile.taps:
                part = (slice(None), *tap.windows)
                to, places = dx[(tile.shards, *tap.places)], (tile.shards, *tap.places)
                own = None if self.apart else self._shaped(added, to)
                bits = (to if own is None else own).view(integers)
                masks = tuple(self._shaped(scratch, to) for scratch in (loses, wins, kept))
                taps.append((self.x_SHWN[places], y[part], d[part], open_[part], masks, bits, own, to))
            self.back.append((open_, taps))
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        for y, two, taps in self.steps:
            if two is None:
                np.copyto(y, self.lowest)
            else:
                np.maximum(*two, out=y)
            for own, part in taps:
                np.maximum(own, part, out=own)
        return self.y

    def backward(self, dy: Array) -> Array:
        if not self.setting.needs_input_gradient:
            return dy
        if not self.covered:
            np.copyto(self.dx, self.zero)
        for open_, taps in self.back:
            # Windows whose maximum has not been met yet.
            np.copyto(open_, True)
            for x, y, dy_bits, still, (lose, win, kept), bits, added, to in taps:
                np.less(x, y, out=lose)
                np.bitwise_and(still, lose, out=lose)
                np.greater(still, lose, out=win)
                np.copyto(still, lose)
                np.copyto(kept, win)
                np.multiply(dy_bits, kept, out=bits)
                if added is not None:
                    np.add(to, added, out=to)
        return self.dx


@final
class AveragePool(_Pool):
    """y[o] = the mean of the x in window o, per channel; what lies outside the image is not counted.

    Shapes: x (S, H, W, C, R), y (S, H', W', C, R).
    Backward: dx = the sum of dy[o] / (the numbers counted in window o) over the windows that hold it (LeCun et al. 1989).
    Raises UserError if x has not the shape it was built for.
    """

    def __init__(self, record: AveragePoolRecord, setting: Setting) -> None:
        super().__init__(record, setting)
        down, across = ([along.inside(o) for o in range(along.count)] for along in (self.down, self.across))
        # (H', W', 1), made once.
        self.counts = np.array([[[i * j] for j in across] for i in down], setting.dtype)
        self.steps = []
        for tile in self.tiles:
            y = self.y_SHWN[(tile.shards, *tile.windows)]
            views = [(y[(slice(None), *tap.windows)], self.x_SHWN[(tile.shards, *tap.places)]) for tap in tile.taps]
            self.steps.append((y, self.counts[tile.windows], views))

    def prepare_backward(self, dy: Array) -> Array:
        if not self.setting.needs_input_gradient:
            return dy
        self.dx = self.setting.memory.input_gradient(self.input_shape)
        dx, dy_SHWN = self.merged(self.dx), self.merged(dy)
        scratch = self.setting.memory.backward_scratch((self.largest,))
        self.back = []
        for tile in self.tiles:
            d = dy_SHWN[(tile.shards, *tile.windows)]
            share = self._shaped(scratch, d)
            taps = [(dx[(tile.shards, *tap.places)], share[(slice(None), *tap.windows)]) for tap in tile.taps]
            self.back.append((d, self.counts[tile.windows], share, taps))
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        for y, counts, taps in self.steps:
            np.copyto(y, self.zero)
            for own, part in taps:
                np.add(own, part, out=own)
            np.divide(y, counts, out=y)
        return self.y

    def backward(self, dy: Array) -> Array:
        if not self.setting.needs_input_gradient:
            return dy
        if not self.covered:
            np.copyto(self.dx, self.zero)
        for d, counts, share, taps in self.back:
            np.divide(d, counts, out=share)
            for dx, part in taps:
                if self.apart:
                    np.copyto(dx, part)
                else:
                    np.add(dx, part, out=dx)
        return self.dx
