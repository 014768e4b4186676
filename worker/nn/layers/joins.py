"""The ends of residual and parallel layers, where several paths become one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import final

import numpy as np

from worker.nn.layers.layer import Layout, Memory
from worker.nn.parameters import Array


class Join(ABC):
    """Several inputs in, one output out: at one stack shape, all in one layout."""

    y: Array

    @abstractmethod
    def prepare_backward(self, dy: Array, memory: Memory) -> list[Array]:
        """Gets the arrays of the backward pass; returns the gradients of the inputs."""

    @abstractmethod
    def forward(self, xs: Sequence[Array]) -> Array:
        """The inputs to the output."""

    @abstractmethod
    def backward(self, dy: Array) -> list[Array]:
        """The gradient of the output to those of the inputs; where they are dy itself, nobody may write to them."""


@final
class Add(Join):
    """y = x_1 + x_2 + ..., from the first to the last (He et al. 2016). Backward: every dx is dy."""

    def __init__(self, xs: Sequence[Array], layout: Layout, memory: Memory) -> None:
        self.y = memory.output(xs[0].shape)
        self._count = len(xs)

    def prepare_backward(self, dy: Array, memory: Memory) -> list[Array]:
        return [dy] * self._count

    def forward(self, xs: Sequence[Array]) -> Array:
        np.add(xs[0], xs[1], out=self.y)
        for x in xs[2:]:
            np.add(self.y, x, out=self.y)
        return self.y

    def backward(self, dy: Array) -> list[Array]:
        return [dy] * self._count


@final
class Concatenate(Join):
    """y = the inputs side by side along the last axis of a row (Szegedy et al. 2015). Backward: each dx is its part of dy."""

    def __init__(self, xs: Sequence[Array], layout: Layout, memory: Memory) -> None:
        axis = xs[0].ndim - (2 if layout is Layout.ROWS_LAST else 1)
        borders = list(accumulate((x.shape[axis] for x in xs), initial=0))
        self._parts = [(slice(None),) * axis + (slice(first, end),) for first, end in pairwise(borders)]
        self.y = memory.output((*xs[0].shape[:axis], borders[-1], *xs[0].shape[axis + 1 :]))
        self._into = [self.y[part] for part in self._parts]

    def prepare_backward(self, dy: Array, memory: Memory) -> list[Array]:
        self._out_of = [dy[part] for part in self._parts]
        self._dxs = [memory.input_gradient(part.shape) for part in self._out_of]
        return self._dxs

    def forward(self, xs: Sequence[Array]) -> Array:
        for x, part in zip(xs, self._into, strict=True):
            np.copyto(part, x)
        return self.y

    def backward(self, dy: Array) -> list[Array]:
        for dx, part in zip(self._dxs, self._out_of, strict=True):
            np.copyto(dx, part)
        return self._dxs
