"""Convolution over height and width, or over one axis."""

from __future__ import annotations

from typing import ClassVar, Protocol, final

import numpy as np

from worker.nn.layers import paired, winograd
from worker.nn.layers.depthwise import Depthwise
from worker.nn.layers.layer import Layer, Setting
from worker.nn.layers.products import Products
from worker.nn.layers.relu import bits_of, let_through
from worker.nn.parameters import Array
from worker.nn.shapes.convolution import Windows, windows
from worker.nn.streams import Streams
from worker.specs import Conv1dRecord, Conv2dRecord, ReluRecord

# Numbers of y or dy that bias and rectifier are applied to at a time, beside constants: all stay in cache.
PIECE = 1 << 14


class Correlation(Protocol):
    """How a convolution without bias is computed, from x to y, arrays (S, H, W, C, R) that it was given."""

    def forward(self) -> None:
        """x to y."""
        ...

    def prepare_backward(self, dy: Array, dx: Array | None, dW: Array) -> None:
        """Gets the arrays of the backward pass."""
        ...

    def backward(self) -> None:
        """dy and x to dW, and to dx if there is one."""
        ...


@final
class Convolution(Layer):
    """Cross-correlation: y[o] = b + sum over taps t and channels of W[t] x[o stride + t dilation - before], 0 outside; then
    max(y, 0) where a rectifier follows.

    Shapes: x (S, H, W, C, R), W (C', kw, kh, C / G), b (C',), y (S, H', W', C', R); G groups of channels, each with filters of
    its own. In public W is (kh, kw, C / G, C'). Over one axis H, H' and kh are left out.
    Backward: dy = 0 where a rectifier was closed; db = dy summed over positions and rows, dW[t] = sum over o of
    dy[o] x[o stride + t dilation - before]^T, dx[o stride + t dilation - before] += W[t]^T dy[o] (LeCun et al. 1989; groups:
    Krizhevsky et al. 2012).
    Raises UserError if x has not the shape it was built for.
    """

    keeps_input = True
    absorbs_activation: ClassVar[bool] = True

    def __init__(self, record: Conv1dRecord | Conv2dRecord, setting: Setting) -> None:
        super().__init__(setting)
        memory = setting.memory
        self.rectified = isinstance(setting.activation, ReluRecord)
        self.keeps_output = self.rectified and setting.training
        self.y = memory.output(self.output_shape)
        weight = setting.parameters["weight"]
        self.flat = isinstance(record, Conv1dRecord)
        if self.flat:
            weight = weight[:, :, None]
        down, across = windows(record, setting.shapes.input_shape)
        self.correlation = self._correlation(record.groups, self._image(setting.x), self._image(self.y), weight, down, across)
        numbers = self.output_shape[-2] * setting.rows
        # Bias and rectifier are applied to whole positions, each of `numbers`.
        self.piece = max(1, PIECE // numbers) * numbers
        self.pieces = self._pieces(self.y)
        self.b_C1 = setting.parameters["bias"][:, None] if record.bias else None
        spread = min(self.piece, self.y.size)
        self.b_PCR = memory.forward_scratch((spread // numbers, *self.output_shape[-2:])) if record.bias else None
        self.zeros = memory.constant((spread,), 0) if self.rectified else None

    def _correlation(self, groups: int, x: Array, y: Array, weight: Array, down: Windows, across: Windows) -> Correlation:
        channels, filters = x.shape[3], y.shape[3]
        if groups == channels == filters > 1:
            return Depthwise(self.setting, x, y, weight, down, across)
        if winograd.fits(down, across, groups, channels, filters):
            return winograd.Winograd(self.setting, x, y, weight, down, across)
        if paired.fits(across, groups, filters):
            return paired.Paired(self.setting, x, y, weight, down, across)
        return Products(self.setting, x, y, weight, groups, down, across)

    def _image(self, a: Array) -> Array:
        return a[:, None] if self.flat else a

    def _pieces(self, a: Array) -> list[Array]:
        """An array in the shape of y as flat pieces of whole positions, which may lie in several shards."""
        flat = a.reshape(-1)
        return [flat[first : first + self.piece] for first in range(0, flat.size, self.piece)]

    def prepare_backward(self, dy: Array) -> Array:
        setting, memory = self.setting, self.setting.memory
        assert setting.gradients is not None
        if self.rectified:
            integers = bits_of(setting.dtype)
            kept = dy if setting.may_overwrite_gradient else memory.backward_scratch(self.output_shape)
            self.open = memory.backward_scratch((min(self.piece, dy.size),), integers)
            self.ones = memory.constant(self.open.shape, 1, integers)
            arrays = (self._pieces(a.view(integers)) for a in (self.y, dy, kept))
            self.rectifying = list(zip(*arrays, strict=True))
            dy = kept
        image, dW = self._image(dy), setting.gradients["weight"]
        dx = memory.input_gradient(self.input_shape) if setting.needs_input_gradient else None
        self.correlation.prepare_backward(
            image, None if dx is None else self._image(dx), dW[:, :, :, None] if self.flat else dW
        )
        self.db_SC = setting.gradients.get("bias")
        if self.db_SC is not None:
            shards, _, _, channels, rows = image.shape
            self.dy_SPN = image.reshape(shards, -1, channels * rows)
            self.sum_SN = memory.backward_scratch((shards, channels * rows))
            self.sum_SCR = self.sum_SN.reshape(shards, channels, rows)
            self.ones_R = memory.constant((rows,), 1)
        self.dx = dy if dx is None else dx
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        self.correlation.forward()
        if self.b_PCR is not None and self.b_C1 is not None:
            # Spread out first: NumPy would do so itself, into memory that it allocates.
            np.copyto(self.b_PCR, self.b_C1)
            spread = self.b_PCR.reshape(-1)
            for piece in self.pieces:
                np.add(piece, spread[: piece.size], out=piece)
                if self.zeros is not None:
                    np.maximum(piece, self.zeros[: piece.size], out=piece)
        elif self.zeros is not None:
            for piece in self.pieces:
                np.maximum(piece, self.zeros[: piece.size], out=piece)
        return self.y

    def backward(self, dy: Array) -> Array:
        if self.rectified:
            for y, given, kept in self.rectifying:
                let_through(given, y, self.ones[: y.size], self.open[: y.size], kept)
        if self.db_SC is not None:
            np.add.reduce(self.dy_SPN, axis=1, out=self.sum_SN)
            np.matmul(self.sum_SCR, self.ones_R, out=self.db_SC)
        self.correlation.backward()
        return self.dx
