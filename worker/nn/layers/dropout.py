"""Dropout."""

from __future__ import annotations

import math
from typing import final

import numpy as np

from worker.nn.layers.layer import Layer, Layout, Setting
from worker.nn.parameters import Array
from worker.nn.streams import Streams
from worker.randomness import BLOCK_WORDS, Purpose, Stream
from worker.specs import DropoutRecord


@final
class Dropout(Layer):
    """y = x mask, each of the mask's numbers 0 with probability `rate`, else 1 / (1 - rate) (Srivastava et al. 2014).

    Shapes: x, y (S, ..., R) or (S, R, ...). A shard's mask takes a word of its stream for each number, in C order; a word w
    keeps the number if (w >> 40) is at least rate 2^24. In evaluation, and where nothing may be drawn, y = x.
    Backward: dx = dy mask.
    Raises UserError if x has not the shape it was built for.
    """

    def __init__(self, record: DropoutRecord, setting: Setting) -> None:
        super().__init__(setting)
        self.y = setting.memory.output(self.output_shape)
        self.drawing = setting.training and record.rate > 0
        self.least = np.uint64(math.ceil(record.rate * 2**24))
        self.scale = np.array(1 / (1 - record.rate), setting.dtype)
        self.mask = setting.memory.kept((setting.shards, self.y.size // setting.shards))

    @classmethod
    def layout(cls, record: DropoutRecord, row: tuple[int, ...]) -> Layout | None:
        return None

    def prepare_backward(self, dy: Array) -> Array:
        self.dx = self.room_for_input_gradient(dy)
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        if not self.setting.training:
            np.copyto(self.y, x)
            return self.y
        if self.drawing and streams is not None:
            for shard, mask in enumerate(self.mask):
                self._draw(mask, streams, shard)
            np.multiply(self.mask, self.scale, out=self.mask)
        else:
            self.mask.fill(1)
        np.multiply(x.reshape(self.mask.shape), self.mask, out=self.y.reshape(self.mask.shape))
        return self.y

    def _draw(self, mask: Array, streams: Streams, shard: int) -> None:
        stream = streams.stream(Purpose.DROPOUT, self.setting.shapes.number, shard)
        for first in range(0, len(mask), BLOCK_WORDS):
            self._draw_block(mask[first : first + BLOCK_WORDS], stream)

    def _draw_block(self, mask: Array, stream: Stream) -> None:
        # On its own, so that a block's words are given back before the next are drawn.
        words = stream.words(len(mask))
        np.right_shift(words, np.uint64(40), out=words)
        np.greater_equal(words, self.least, out=mask)

    def backward(self, dy: Array) -> Array:
        np.multiply(dy.reshape(self.mask.shape), self.mask, out=self.dx.reshape(self.mask.shape))
        return self.dx
