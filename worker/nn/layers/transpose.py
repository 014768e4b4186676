"""The change between the two layouts of an activation; no layer of a job, but put between two that differ."""

from __future__ import annotations

from typing import ClassVar, final

import numpy as np

from worker.nn.layers.layer import Layer, Layout, Setting
from worker.nn.parameters import Array
from worker.nn.streams import Streams

# Of long rows so many are turned at a time: more lie too far apart, in one of the two layouts, to stay in the cache.
ROWS = 8
LONG = 1024


def turned(x: Array, layout: Layout) -> Array:
    """x in the other layout, as a view; `layout` is the one it has."""
    axes = range(x.ndim)
    order = (0, *axes[2:], 1) if layout is Layout.ROWS_FIRST else (0, x.ndim - 1, *axes[1:-1])
    return x.transpose(order)


@final
class Transpose(Layer):
    """y = x in the other layout: a view where the next layer reads one, else a copy.

    Shapes: x (S, R, ...), y (S, ..., R), or the other way round; `setting.layout` is that of x.
    Backward: dx = dy in the layout of x.
    """

    takes_strided_input: ClassVar[bool] = True

    def __init__(self, view: bool, setting: Setting) -> None:
        super().__init__(setting)
        self._from, self._to = setting.layout, _other(setting.layout)
        self.view, self._x = view, setting.x
        y = turned(setting.x, self._from)
        self.y = y if view else setting.memory.output(y.shape)

    def prepare_backward(self, dy: Array) -> Array:
        if not self.setting.needs_input_gradient:
            return dy
        self.dy_turned = turned(dy, self._to)
        # x may be a layer's output, at the end of a path or of the network: `setting.shapes` then says nothing of it.
        self.dx = self.setting.memory.input_gradient(self.setting.x.shape)
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        if self.view:
            if x is not self._x:
                self._x, self.y = x, turned(x, self._from)
            return self.y
        _copy(self.y, turned(x, self._from), self._to)
        return self.y

    def backward(self, dy: Array) -> Array:
        if not self.setting.needs_input_gradient:
            return dy
        _copy(self.dx, self.dy_turned, self._from)
        return self.dx


def _copy(to: Array, of: Array, layout: Layout) -> None:
    """Copies `of` to `to`, both (S, R, ...) or (S, ..., R) as `layout` says."""
    axis = 1 if layout is Layout.ROWS_FIRST else to.ndim - 1
    rows = to.shape[axis]
    step = ROWS if to[0].size > LONG * rows else rows
    for first in range(0, rows, step):
        part = (slice(None),) * axis + (slice(first, first + step),)
        np.copyto(to[part], of[part])


def _other(layout: Layout) -> Layout:
    return Layout.ROWS_LAST if layout is Layout.ROWS_FIRST else Layout.ROWS_FIRST
