"""Convolution over height and width, or over one axis."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, final

import numpy as np

from worker.nn.layers.depthwise import Depthwise
from worker.nn.layers.layer import Layer, Setting
from worker.nn.layers.windows import GATHERED, Block, Gather, chunks
from worker.nn.parameters import Array
from worker.nn.shapes.convolution import Windows, windows
from worker.nn.streams import Streams
from worker.specs import Conv1dRecord, Conv2dRecord


class Correlation(Protocol):
    """How a convolution is computed between arrays (S, H, W, C, R) that it was given; `bias` is (C', R), or None."""

    def forward(self, x: Array, bias: Array | None) -> None:
        """x to y."""
        ...

    def prepare_backward(self, dy: Array, dx: Array | None, dW: Array) -> None:
        """Gets the arrays of the backward pass."""
        ...

    def backward(self, x: Array) -> None:
        """dy to dW, and to dx if there is one; x is that of the forward pass."""
        ...


@final
class Convolution(Layer):
    """Cross-correlation: y[o] = b + sum over taps t and channels of W[t] x[o stride + t dilation - before], 0 outside.

    Shapes: x (S, H, W, C, R), W (C', kw, kh, C / G), b (C',), y (S, H', W', C', R); G groups of channels, each with filters of
    its own. In public W is (kh, kw, C / G, C'). Over one axis H, H' and kh are left out.
    Backward: db = dy summed over positions and rows, dW[t] = sum over o of dy[o] x[o stride + t dilation - before]^T,
    dx[o stride + t dilation - before] += W[t]^T dy[o] (LeCun et al. 1989; groups: Krizhevsky et al. 2012).
    Raises UserError if x has not the shape it was built for.
    """

    keeps_input = True
    takes_strided_input = True

    def __init__(self, record: Conv1dRecord | Conv2dRecord, setting: Setting) -> None:
        super().__init__(setting)
        self.y = setting.memory.output(self.output_shape)
        weight = setting.parameters["weight"]
        self.flat = isinstance(record, Conv1dRecord)
        if self.flat:
            weight = weight[:, :, None]
        down, across = windows(record, setting.shapes.input_shape)
        x, y = self._image(setting.x), self._image(self.y)
        self.given = self.x = x
        self.correlation: Correlation
        if record.groups == x.shape[3] == y.shape[3] and record.groups > 1:
            self.correlation = Depthwise(setting, x, y, weight, down, across)
        else:
            self.correlation = _Products(setting, x, y, weight, record.groups, down, across)
        self.b_C1 = setting.parameters["bias"][:, None] if record.bias else None
        self.b_CR = setting.memory.forward_scratch(y.shape[3:]) if record.bias else None

    def _image(self, a: Array) -> Array:
        return a[:, None] if self.flat else a

    def prepare_backward(self, dy: Array) -> Array:
        setting = self.setting
        assert setting.gradients is not None
        dW = setting.gradients["weight"]
        dx = setting.memory.input_gradient(self.input_shape) if setting.needs_input_gradient else None
        image = self._image(dy)
        self.correlation.prepare_backward(
            image, None if dx is None else self._image(dx), dW[:, :, :, None] if self.flat else dW
        )
        self.db_SC = setting.gradients.get("bias")
        if self.db_SC is not None:
            shards, _, _, channels, rows = image.shape
            self.dy_SPN = image.reshape(shards, -1, channels * rows)
            self.sum_SN = setting.memory.backward_scratch((shards, channels * rows))
            self.sum_SCR = self.sum_SN.reshape(shards, channels, rows)
            self.ones_R = setting.memory.constant((rows,), 1)
        self.dx = dy if dx is None else dx
        return self.dx

    def forward(self, x: Array, streams: Streams | None) -> Array:
        self.check(x)
        if self.b_CR is not None and self.b_C1 is not None:
            np.copyto(self.b_CR, self.b_C1)
        # A first layer's x is another array in each pass.
        self.x = self.given if x is self.setting.x else self._image(x)
        self.correlation.forward(self.x, self.b_CR)
        return self.y

    def backward(self, dy: Array) -> Array:
        if self.db_SC is not None:
            np.add.reduce(self.dy_SPN, axis=1, out=self.sum_SN)
            np.matmul(self.sum_SCR, self.ones_R, out=self.db_SC)
        self.correlation.backward(self.x)
        return self.dx


def _grouped(a: Array, groups: int) -> Array:
    """(S, H, W, C, R) as (S, H, W, G, C / G, R), a view."""
    return a.reshape(*a.shape[:3], groups, a.shape[3] // groups, a.shape[4])


@final
class _Products:
    """A convolution as products of filters and gathered columns, a row of windows at a time.

    K is (kw, kh, C / G), O is C' / G. Forward: y[o] (G, O, R) = W (G, O, K) columns[o] (G, K, R). dW (G, K, O) = sum over o
    of columns[o] dy[o]^T, positions from first to last. dx: with stride 1 the correlation of dy with W turned around, else
    W^T dy[o] added into dx where each tap came from.
    """

    def __init__(
        self, setting: Setting, x: Array, y: Array, weight: Array, groups: int, down: Windows, across: Windows
    ) -> None:
        self.memory, self.groups, self.down, self.across = setting.memory, groups, down, across
        self.given, self.x = x, _grouped(x, groups)
        self.weight = weight
        self.filters = y.shape[3] // groups
        self.size = weight.size // y.shape[3]
        self.W_G1OK = weight.reshape(groups, 1, self.filters, self.size)
        self.gather = Gather(self.x, down, across, setting.memory.forward_scratch)
        self.outputs = [(block, *self._output(y, block)) for block in self.gather.blocks]

    def _output(self, y: Array, block: Block) -> tuple[Array, Array]:
        """The part of y (S, H, W, C, R) that a block computes: (s, G, w, C / G, R), and (s, w, C, R) for the bias."""
        part = y[block.shards, block.row, block.first : block.last]
        return _lines(part, self.groups), part

    def _seen(self, x: Array) -> Array:
        return self.x if x is self.given else _grouped(x, self.groups)

    def forward(self, x: Array, bias: Array | None) -> None:
        image = self._seen(x)
        for block, y, y_and_bias in self.outputs:
            np.matmul(self.W_G1OK, self.gather.fill(block, image), out=y)
            if bias is not None:
                np.add(y_and_bias, bias, out=y_and_bias)

    def prepare_backward(self, dy: Array, dx: Array | None, dW: Array) -> None:
        scratch, (shards, _, _, _, rows) = self.memory.backward_scratch, dy.shape
        groups, size, filters = self.groups, self.size, self.filters
        one = groups * size * filters
        # Products of so many windows are summed at a time; it depends on one shard's shape alone.
        most = max(1, GATHERED // one)
        self.back = Gather(self.x, self.down, self.across, scratch, beside=one * min(most, self.across.count))
        widest, stacked = self.back.widest, self.back.shards
        self.turned = scratch((stacked, groups, widest, rows, filters))
        self.products = scratch((stacked, groups, min(most, widest), size, filters))
        self.part = scratch((stacked, groups, size, filters))
        self.sum = scratch((shards, groups, size, filters))
        self.dW_SGKO = dW.reshape(shards, groups, filters, size).transpose(0, 1, 3, 2)
        self.zero = np.zeros((), dy.dtype)
        self.steps = [(block, _lines(self._line(dy, block), groups), self._sums(block, most)) for block in self.back.blocks]
        self.way: _Turned | _Scattered | None = None
        if dx is not None and self.down.stride == self.across.stride == 1:
            self.way = _Turned(self, dy, dx)
        elif dx is not None:
            self.way = _Scattered(self, dy, dx)

    @staticmethod
    def _line(dy: Array, block: Block) -> Array:
        return dy[block.shards, block.row, block.first : block.last]

    def _sums(self, block: Block, most: int) -> list[tuple[slice, Array, Array, Array, Array]]:
        """Per part of the block: which windows, dy turned, where the products go, their sum over positions, and the total."""
        sums, shards = [], block.shards.stop - block.shards.start
        for first, last in chunks(block.last - block.first, most):
            products = self.products[:shards, :, : last - first]
            turned = self.turned[:shards, :, first:last]
            sums.append((slice(first, last), turned, products, self.part[:shards], self.sum[block.shards]))
        return sums

    def backward(self, x: Array) -> None:
        image = self._seen(x)
        np.copyto(self.sum, self.zero)
        for block, dy, sums in self.steps:
            gathered = self.back.fill(block, image)
            # Turned first, so that BLAS sees its fast form.
            np.copyto(self.turned[: dy.shape[0], :, : dy.shape[2]], dy.transpose(0, 1, 2, 4, 3))
            for part_of, turned, products, part, total in sums:
                np.matmul(gathered[:, :, part_of], turned, out=products)
                np.add.reduce(products, axis=2, out=part)
                np.add(total, part, out=total)
        np.copyto(self.dW_SGKO, self.sum)
        if self.way is not None:
            self.way.backward()


def _lines(part: Array, groups: int) -> Array:
    """(s, w, C, R) as (s, G, w, C / G, R), a view."""
    shards, width, channels, rows = part.shape
    return part.reshape(shards, width, groups, channels // groups, rows).transpose(0, 2, 1, 3, 4)


@final
class _Turned:
    """dx of a convolution with stride 1: the correlation of dy with the filters turned around."""

    def __init__(self, products: _Products, dy: Array, dx: Array) -> None:
        groups, filters, weight = products.groups, products.filters, products.weight
        scratch = products.memory.backward_scratch
        _, across, down, channels = weight.shape
        self.W_GOJIC = weight.reshape(groups, filters, across, down, channels)[:, :, ::-1, ::-1]
        self.W_GCJIO = scratch((groups, channels, across, down, filters))
        self.W_G1CK = self.W_GCJIO.reshape(groups, 1, channels, -1)
        self.dy = _grouped(dy, groups)
        self.gather = Gather(self.dy, self._around(products.down), self._around(products.across), scratch)
        self.parts = [
            (block, _lines(dx[block.shards, block.row, block.first : block.last], groups)) for block in self.gather.blocks
        ]

    @staticmethod
    def _around(along: Windows) -> Windows:
        before = (along.taps - 1) * along.dilation - along.before
        return replace(along, size=along.count, count=along.size, before=before)

    def backward(self) -> None:
        np.copyto(self.W_GCJIO, self.W_GOJIC.transpose(0, 4, 2, 3, 1))
        for block, dx in self.parts:
            np.matmul(self.W_G1CK, self.gather.fill(block, self.dy), out=dx)


@final
class _Scattered:
    """dx of a convolution with a stride: W^T dy, a row of windows at a time, each tap added where it came from."""

    def __init__(self, products: _Products, dy: Array, dx: Array) -> None:
        groups, (_, across, down, channels) = products.groups, products.weight.shape
        self.W_G1KO, self.dx, self.zero = products.W_G1OK.transpose(0, 1, 3, 2), dx, products.zero
        shards, _, _, _, rows = dy.shape
        per_window = groups * products.size * rows
        widths = list(chunks(products.across.count, GATHERED // per_window))
        widest = widths[0][1] - widths[0][0]
        stacks = list(chunks(shards, GATHERED // (per_window * widest)))
        stacked = stacks[0][1] - stacks[0][0]
        columns = products.memory.backward_scratch((stacked, groups, widest, products.size, rows))
        image = _grouped(dx, groups)
        self.parts = []
        for stack in stacks:
            for row in range(products.down.count):
                for first, last in widths:
                    own = columns[: stack[1] - stack[0], :, : last - first]
                    taps = own.reshape(*own.shape[:3], across, down, channels, rows)
                    adds = self._adds(products, image[slice(*stack)], taps, row, first, last)
                    self.parts.append((_lines(dy[slice(*stack), row, first:last], groups), own, adds))

    @staticmethod
    def _adds(products: _Products, image: Array, taps: Array, row: int, first: int, last: int) -> list[tuple[Array, Array]]:
        """What is added where: views of dx and of the columns, (s, taps inside, w, G, C / G, R)."""
        down, adds = products.down, []
        top, bottom = down.taps_inside(row)
        if top == bottom:
            return []
        start = down.place(row, top)
        lines = image[:, start : start + (bottom - top - 1) * down.dilation + 1 : down.dilation]
        for tap in range(products.across.taps):
            left, right = products.across.windows_inside(tap, first, last)
            if left < right:
                to = lines[:, :, products.across.positions(tap, left, right)]
                adds.append((to, taps[:, :, left - first : right - first, tap, top:bottom].transpose(0, 3, 2, 1, 4, 5)))
        return adds

    def backward(self) -> None:
        np.copyto(self.dx, self.zero)
        for dy, columns, adds in self.parts:
            np.matmul(self.W_G1KO, dy, out=columns)
            for to, added in adds:
                np.add(to, added, out=to)
