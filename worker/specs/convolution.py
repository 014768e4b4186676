"""The records of convolutions and pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, final

from lockstep.v1.model_pb2 import AveragePool, Conv1d, Conv2d, GlobalPool, Layer, MaxPool, Size2d
from worker.specs.initializers import InitializerRecord, read_initializer
from worker.specs.records import LayerReader, LayerRecord, Reading, given_or_default, none_given

# (height, width).
Size: TypeAlias = tuple[int, int]


@final
@dataclass(frozen=True, slots=True)
class PaddingRecord:
    """The border of an image; the four sizes count where it is explicit."""

    kind: Literal["valid", "same", "explicit"] = "valid"
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


@final
@dataclass(frozen=True, slots=True)
class Conv2dRecord(LayerRecord):
    """Cross-correlation over height and width."""

    kind: ClassVar[str] = "conv2d"
    filters: int
    kernel: Size
    stride: Size
    padding: PaddingRecord
    dilation: Size
    groups: int
    bias: bool
    initializer: InitializerRecord


@final
@dataclass(frozen=True, slots=True)
class Conv1dRecord(LayerRecord):
    """Cross-correlation over one axis; of the padding left and right alone count."""

    kind: ClassVar[str] = "conv1d"
    filters: int
    kernel: int
    stride: int
    padding: PaddingRecord
    dilation: int
    groups: int
    bias: bool
    initializer: InitializerRecord


@final
@dataclass(frozen=True, slots=True)
class MaxPoolRecord(LayerRecord):
    """Maximum over each window, per channel."""

    kind: ClassVar[str] = "max_pool"
    window: Size
    stride: Size
    padding: PaddingRecord


@final
@dataclass(frozen=True, slots=True)
class AveragePoolRecord(LayerRecord):
    """Mean over each window, per channel; the border is not counted."""

    kind: ClassVar[str] = "average_pool"
    window: Size
    stride: Size
    padding: PaddingRecord


@final
@dataclass(frozen=True, slots=True)
class GlobalMeanRecord(LayerRecord):
    """Mean over all positions, per channel."""

    kind: ClassVar[str] = "global_pool"


@final
@dataclass(frozen=True, slots=True)
class GlobalMaxRecord(LayerRecord):
    """Maximum over all positions, per channel."""

    kind: ClassVar[str] = "global_pool"


def _size(size: Size2d) -> Size:
    return size.height, size.width


def _padding(message: Conv2d | Conv1d | MaxPool | AveragePool, reading: Reading) -> PaddingRecord:
    if not message.HasField("padding"):
        return PaddingRecord()
    given = message.padding
    kind = given.WhichOneof("kind")
    if kind is None:
        reading.wrong.append(none_given(f"{reading.place}.padding", "padding", ("same", "valid", "explicit")))
        return PaddingRecord()
    sides = given.explicit
    return PaddingRecord(kind, sides.top, sides.bottom, sides.left, sides.right)


def _conv2d(message: Layer, reading: Reading) -> LayerRecord:
    conv = message.conv2d
    return Conv2dRecord(
        filters=conv.filters,
        kernel=_size(conv.kernel),
        stride=_size(conv.stride) if conv.HasField("stride") else (1, 1),
        padding=_padding(conv, reading),
        dilation=_size(conv.dilation) if conv.HasField("dilation") else (1, 1),
        groups=given_or_default(conv, "groups"),
        bias=given_or_default(conv, "bias"),
        initializer=read_initializer(conv.initializer if conv.HasField("initializer") else None, reading),
    )


def _conv1d(message: Layer, reading: Reading) -> LayerRecord:
    conv = message.conv1d
    return Conv1dRecord(
        filters=conv.filters,
        kernel=conv.kernel,
        stride=given_or_default(conv, "stride"),
        padding=_padding(conv, reading),
        dilation=given_or_default(conv, "dilation"),
        groups=given_or_default(conv, "groups"),
        bias=given_or_default(conv, "bias"),
        initializer=read_initializer(conv.initializer if conv.HasField("initializer") else None, reading),
    )


def _max_pool(message: Layer, reading: Reading) -> LayerRecord:
    pool = message.max_pool
    window = _size(pool.window)
    stride = _size(pool.stride) if pool.HasField("stride") else window
    return MaxPoolRecord(window, stride, _padding(pool, reading))


def _average_pool(message: Layer, reading: Reading) -> LayerRecord:
    pool = message.average_pool
    window = _size(pool.window)
    stride = _size(pool.stride) if pool.HasField("stride") else window
    return AveragePoolRecord(window, stride, _padding(pool, reading))


def _global_pool(message: Layer, reading: Reading) -> LayerRecord:
    return GlobalMaxRecord() if message.global_pool.reduction == GlobalPool.MAX else GlobalMeanRecord()


READERS: dict[str, LayerReader] = {
    "conv2d": _conv2d,
    "conv1d": _conv1d,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "global_pool": _global_pool,
}
