"""Mean over windows of an image."""

from __future__ import annotations

from typing import final

import numpy as np

from worker.nn.layers.layer import Layer, Setting
from worker.nn.layers.windows import Tile, add_to, merged, tiles
from worker.nn.parameters import Array
from worker.nn.shapes.convolution import windows
from worker.nn.streams import Streams
from worker.specs import AveragePoolRecord


@final
class AveragePool(Layer):
    """y[o] = the mean of the x in window o, per channel; what lies outside the image is not counted.

    Shapes: x (S, H, W, C, R), y (S, H', W', C, R).
    Backward: dx = the sum of dy[o] / (the numbers counted in window o) over the windows that hold it (LeCun et al. 1989).
    Raises UserError if x has not the shape it was built for.
    """

    def __init__(self, record: AveragePoolRecord, setting: Setting) -> None:
        super().__init__(setting)
        down, across = windows(record, setting.shapes.input_shape)
        self.y = setting.memory.output(self.output_shape)
        self.x_SHWN, self.y_SHWN = merged(setting.x), merged(self.y)
        self.tiles = list(tiles(setting.shards, down, across, self.y_SHWN.shape[3]))
        self.largest = max(self.y_SHWN[(tile.shards, *tile.windows)].size for tile in self.tiles)
        self.apart = down.apart and across.apart
        inside_down, inside_across = ([along.inside(o) for o in range(along.count)] for along in (down, across))
        # (H', W', 1), made once.
        self.counts = np.array([[[i * j] for j in inside_across] for i in inside_down], setting.dtype)
        self.forward_room = setting.memory.forward_scratch((self.largest,))

    def prepare_backward(self, dy: Array) -> Array:
        if not self.setting.needs_input_gradient:
            return dy
        memory = self.setting.memory
        self.dx = memory.input_gradient(self.input_shape)
        self.dx_SHWN, self.dy_SHWN = merged(self.dx), merged(dy)
        self.room = memory.backward_scratch((3, self.largest))
        return self.dx

    def _counts(self, tile: Tile, room: Array) -> None:
        """How many numbers each window of a tile holds, spread over (s, h, w, N)."""
        np.copyto(room, self.counts[tile.windows])

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        for tile in self.tiles:
            y = self.y_SHWN[(tile.shards, *tile.windows)]
            flat, room = y.reshape(-1), self.forward_room[: y.size]
            shaped = room.reshape(y.shape)
            for number, tap in enumerate(tile.taps):
                into = shaped if number else y
                if not tap.whole:
                    into.fill(0)
                np.copyto(into[(slice(None), *tap.windows)], self.x_SHWN[(tile.shards, *tap.places)])
                if number:
                    np.add(flat, room, out=flat)
            self._counts(tile, shaped)
            np.divide(flat, room, out=flat)
        return self.y

    def backward(self, dy: Array) -> Array:
        if not self.setting.needs_input_gradient:
            return dy
        self.dx.fill(0)
        for tile in self.tiles:
            d = self.dy_SHWN[(tile.shards, *tile.windows)]
            share = self.room[0, : d.size]
            shaped = share.reshape(d.shape)
            self._counts(tile, shaped)
            np.divide(d.reshape(-1), share, out=share)
            for tap in tile.taps:
                to, part = self.dx_SHWN[(tile.shards, *tap.places)], shaped[(slice(None), *tap.windows)]
                if self.apart:
                    np.copyto(to, part)
                else:
                    add_to(to, part, self.room[1:])
        return self.dx
