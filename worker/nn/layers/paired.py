"""Convolution with few filters: two neighbouring windows as one with twice as many, so that products are less flat."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import numpy as np

from worker.nn.layers.layer import Setting
from worker.nn.layers.products import InputGradient, Products, input_gradient
from worker.nn.parameters import Array
from worker.nn.shapes.convolution import Windows

MOST_FILTERS = 8
# A pair of windows has one stride more taps than each; with fewer taps in all too many of its weights are 0.
LEAST_TAPS = 4


def fits(across: Windows, groups: int, filters: int) -> bool:
    """Whether `Paired` computes such a convolution, and saves time."""
    wide = across.dilation == 1 and across.taps >= LEAST_TAPS * across.stride and across.count % 2 == 0
    return wide and groups == 1 and filters <= MOST_FILTERS


def _pairs(a: Array) -> Array:
    """(S, H, W, C, R) as (S, H, W / 2, 2 C, R), a view."""
    shards, height, width, channels, rows = a.shape
    return a.reshape(shards, height, width // 2, 2 * channels, rows)


@final
class Paired:
    """The convolution with windows (kw + stride) wide and 2 C' filters, of which half are moved by the stride; dW is the sum
    of both halves'. dx is computed as without pairs.

    Shapes: x (S, H, W, C, R), W (C', kw, kh, C), y (S, H', W', C', R).
    """

    def __init__(self, setting: Setting, x: Array, y: Array, weight: Array, down: Windows, across: Windows) -> None:
        self.memory, self.weight, self.down, self.across = setting.memory, weight, down, across
        wide = replace(across, count=across.count // 2, taps=across.taps + across.stride, stride=2 * across.stride)
        filters, _, *rest = weight.shape
        self.shape = (2, filters, wide.taps, *rest)
        self.pairs = setting.memory.forward_scratch(self.shape)
        self.halves = [self._half(self.pairs, number) for number in range(2)]
        self.products = Products(setting, x, _pairs(y), self.pairs.reshape(2 * filters, wide.taps, *rest), 1, down, wide)

    def _half(self, pairs: Array, number: int) -> Array:
        """Where the weights of a pair's window lie in (..., 2, C', kw + stride, kh, C)."""
        first = number * self.across.stride
        return pairs[..., number, :, first : first + self.across.taps, :, :]

    def forward(self) -> None:
        self.pairs.fill(0)
        for half in self.halves:
            np.copyto(half, self.weight)
        self.products.forward()

    def prepare_backward(self, dy: Array, dx: Array | None, dW: Array) -> None:
        shards, (_, filters, *rest) = len(dy), self.shape
        gradient = self.memory.backward_scratch((shards, *self.shape))
        self.products.prepare_backward(_pairs(dy), None, gradient.reshape(shards, 2 * filters, *rest))
        # Sums are formed where both are contiguous.
        self.first, self.second = (self.memory.backward_scratch(self.weight.shape) for _ in range(2))
        self.sums = [(own, *(self._half(pair, number) for number in range(2))) for own, pair in zip(dW, gradient, strict=True)]
        self.input_gradient: InputGradient | None = None
        if dx is not None:
            self.input_gradient = input_gradient(self.memory, self.weight, 1, self.down, self.across, dy, dx)

    def backward(self) -> None:
        self.products.backward()
        first, second = self.first, self.second
        for dW, one, other in self.sums:
            np.copyto(first, one)
            np.copyto(second, other)
            np.add(first, second, out=first)
            np.copyto(dW, first)
        if self.input_gradient is not None:
            self.input_gradient.run()
