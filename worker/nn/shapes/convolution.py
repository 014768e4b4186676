"""Shapes of convolutions and pooling, and where their windows lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

from worker.limits import MAX_ACTIVATION
from worker.nn.shapes.shape import ZERO, Initial, Outcome, Refusals, Role, Rule, Shape, TensorShape
from worker.specs import AveragePoolRecord, Conv1dRecord, Conv2dRecord, GlobalMaxRecord, GlobalMeanRecord, MaxPoolRecord
from worker.specs.convolution import PaddingRecord

MAX_FILTERS = 1 << 16
# Of windows, strides, dilations and sides of a border.
MAX_SIZE = 1 << 10
SIDES = ("top", "bottom", "left", "right")


@final
@dataclass(frozen=True, slots=True)
class Windows:
    """The windows along one axis: tap t of window o lies at o * stride + t * dilation - before.

    `size` is the input's, `count` the number of windows. `before` may be negative: windows then begin inside the input.
    """

    size: int
    count: int
    taps: int
    stride: int
    dilation: int
    before: int

    @property
    def borderless(self) -> bool:
        """Whether all taps of all windows lie inside the input."""
        return self.before <= 0 and self.place(self.count - 1, self.taps - 1) < self.size

    @property
    def apart(self) -> bool:
        """Whether no number of the input lies in two windows, where the dilation is 1."""
        return self.stride >= self.taps

    def taps_inside(self, window: int) -> tuple[int, int]:
        """The taps [first, last) of a window that lie inside the input."""
        start = window * self.stride - self.before
        first = max(0, -(start // self.dilation))
        last = min(self.taps, (self.size - 1 - start) // self.dilation + 1)
        return min(first, self.taps), max(last, min(first, self.taps))

    def windows_inside(self, tap: int, first: int, last: int) -> tuple[int, int]:
        """Those of the windows [first, last) of which a tap lies inside the input, [from, to)."""
        shift = self.before - tap * self.dilation
        start = max(first, -(-shift // self.stride))
        end = min(last, (self.size - 1 + shift) // self.stride + 1)
        return (start, end) if start < end else (first, first)

    def place(self, window: int, tap: int) -> int:
        """Where a tap of a window lies in the input."""
        return window * self.stride + tap * self.dilation - self.before

    def positions(self, tap: int, first: int, last: int) -> slice:
        """Where a tap of the windows [first, last) lies, all of them inside the input and at least one."""
        start = self.place(first, tap)
        return slice(start, start + (last - first - 1) * self.stride + 1, self.stride)

    def inside(self, window: int) -> int:
        """How many taps of a window lie inside the input."""
        first, last = self.taps_inside(window)
        return last - first


def _along(size: int, taps: int, stride: int, dilation: int, padding: PaddingRecord, before: int, after: int) -> Windows:
    reach = (taps - 1) * dilation + 1
    if padding.kind == "same":
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        before, after = total // 2, total - total // 2
    elif padding.kind == "valid":
        before = after = 0
    return Windows(size, (size + before + after - reach) // stride + 1, taps, stride, dilation, before)


def windows(record: Any, shape: Shape) -> tuple[Windows, Windows]:
    """The windows along height and width; those of conv1d have height 1. `count` is below 1 where none fits."""
    padding = record.padding
    if isinstance(record, Conv1dRecord):
        across = _along(shape[0], record.kernel, record.stride, record.dilation, padding, padding.left, padding.right)
        return Windows(1, 1, 1, 1, 1, 0), across
    taps = record.kernel if isinstance(record, Conv2dRecord) else record.window
    dilation = record.dilation if isinstance(record, Conv2dRecord) else (1, 1)
    down = _along(shape[0], taps[0], record.stride[0], dilation[0], padding, padding.top, padding.bottom)
    return down, _along(shape[1], taps[1], record.stride[1], dilation[1], padding, padding.left, padding.right)


def _sizes(record: Any, names: tuple[str, ...], refusals: Refusals) -> bool:
    """Whether all these fields, and the border, are within their bounds; refuses those that are not."""
    fields: list[tuple[str, int, int]] = []
    for name in names:
        value = getattr(record, name)
        if isinstance(value, tuple):
            fields += [(f"{name}.height", value[0], 1), (f"{name}.width", value[1], 1)]
        else:
            fields.append((name, value, 1))
    if record.padding.kind == "explicit":
        fields += [(f"padding.explicit.{side}", getattr(record.padding, side), 0) for side in SIDES]
    wrong = [field for field in fields if not field[2] <= field[1] <= MAX_SIZE]
    for name, value, least in wrong:
        refusals.field(name, value, f"it must be at least {least} and at most {MAX_SIZE}")
    return not wrong


def _fits(record: Any, shape: Shape, refusals: Refusals) -> bool:
    """Whether at least one window fits; refuses a window that is larger than the padded input."""
    fit = True
    name = "window" if isinstance(record, MaxPoolRecord | AveragePoolRecord) else "kernel"
    for side, along in zip(("height", "width"), windows(record, shape), strict=True):
        if along.count < 1:
            reach = (along.taps - 1) * along.dilation + 1
            where = name if isinstance(record, Conv1dRecord) else f"{name}.{side}"
            what = "length" if isinstance(record, Conv1dRecord) else side
            spans = f"with its dilation it spans {reach}, " if along.dilation > 1 else "it is "
            remedy = f"{spans}more than the padded {what} of an input of {along.size}"
            refusals.field(where, along.taps, f"{remedy}; make it smaller or the padding larger", "SHAPES_DO_NOT_MEET")
            fit = False
    return fit


def _convolution(record: Conv1dRecord | Conv2dRecord, shape: Shape, refusals: Refusals) -> Outcome:
    kernel: tuple[int, ...] = (record.kernel,) if isinstance(record, Conv1dRecord) else record.kernel
    axes = "(height, width, channels)" if len(kernel) == 2 else "(length, channels)"
    if len(shape) != len(kernel) + 1:
        refusals.shape(shape, f"it takes rows of shape {axes}; put reshape before it")
        return Outcome(shape)
    right = _sizes(record, ("kernel", "stride", "dilation"), refusals)
    filters, groups, channels = record.filters, record.groups, shape[-1]
    if not 1 <= filters <= MAX_FILTERS:
        refusals.field("filters", filters, f"it must be at least 1 and at most {MAX_FILTERS}")
        right = False
    elif groups < 1 or filters % groups or channels % groups:
        remedy = f"it must be at least 1 and divide both the {channels} channels of the input and the {filters} filters"
        refusals.field("groups", groups, remedy)
        right = False
    if not right or not _fits(record, shape, refusals):
        return Outcome(shape)
    down, across = windows(record, shape)
    taps, inputs, outputs = down.taps * across.taps, channels // groups, filters // groups
    if taps * channels > MAX_ACTIVATION:
        remedy = f"a window may hold at most {MAX_ACTIVATION} numbers, and it holds {taps * channels}"
        refusals.field("kernel", " x ".join(map(str, kernel)), remedy, "MODEL_TOO_LARGE")
        return Outcome(shape)
    initial = Initial(record.initializer.kind, taps * inputs, taps * outputs, record.initializer.value)
    # A filter's numbers lie in the order in which columns of the image are gathered: along the width first.
    weight = TensorShape(
        (*kernel, inputs, filters),
        (filters, *kernel[::-1], inputs),
        (2, 1, 3, 0) if len(kernel) == 2 else (1, 2, 0),
        initial,
    )
    tensors = {"weight": weight}
    if record.bias:
        tensors["bias"] = TensorShape.plain((filters,), ZERO, Role.OFFSET)
    counts = (down.count, across.count) if len(kernel) == 2 else (across.count,)
    # At least one window's columns are gathered at a time, of x and of dy.
    return Outcome((*counts, filters), tensors, kept=taps * (channels + filters))


def _pool(record: MaxPoolRecord | AveragePoolRecord, shape: Shape, refusals: Refusals) -> Outcome:
    if len(shape) != 3:
        refusals.shape(shape, "it takes rows of shape (height, width, channels); put reshape before it")
        return Outcome(shape)
    if not _sizes(record, ("window", "stride"), refusals):
        return Outcome(shape)
    padding = record.padding
    if padding.kind == "explicit":
        height, width = record.window
        sides = (("top", height), ("bottom", height), ("left", width), ("right", width))
        wide = [(side, size) for side, size in sides if getattr(padding, side) >= size]
        for side, size in wide:
            # Else a window might hold nothing.
            remedy = f"it must be less than the window's {size} along that axis"
            refusals.field(f"padding.explicit.{side}", getattr(padding, side), remedy)
        if wide:
            return Outcome(shape)
    if not _fits(record, shape, refusals):
        return Outcome(shape)
    down, across = windows(record, shape)
    output = (down.count, across.count, shape[-1])
    return Outcome(output, kept=math.prod(output))


def _global_pool(record: GlobalMeanRecord | GlobalMaxRecord, shape: Shape, refusals: Refusals) -> Outcome:
    if len(shape) < 2:
        refusals.shape(shape, "it takes rows with positions and channels, such as (height, width, channels)")
    return Outcome((shape[-1],))


RULES: dict[type[Any], Rule] = {
    Conv2dRecord: _convolution,
    Conv1dRecord: _convolution,
    MaxPoolRecord: _pool,
    AveragePoolRecord: _pool,
    GlobalMeanRecord: _global_pool,
    GlobalMaxRecord: _global_pool,
}
