"""The records of dense, flatten and reshape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from lockstep.v1.model_pb2 import Layer
from worker.specs.initializers import InitializerRecord, read_initializer
from worker.specs.records import LayerReader, LayerRecord, Reading, given_or_default


@final
@dataclass(frozen=True, slots=True)
class DenseRecord(LayerRecord):
    """y = x W + b with W (inputs, units), over the last axis of a row."""

    kind: ClassVar[str] = "dense"
    units: int
    bias: bool
    initializer: InitializerRecord


@final
@dataclass(frozen=True, slots=True)
class FlattenRecord(LayerRecord):
    """All axes of a row as one, in C order."""

    kind: ClassVar[str] = "flatten"


@final
@dataclass(frozen=True, slots=True)
class ReshapeRecord(LayerRecord):
    """The numbers of a row in another shape, in C order."""

    kind: ClassVar[str] = "reshape"
    shape: tuple[int, ...]


def _dense(message: Layer, reading: Reading) -> LayerRecord:
    dense = message.dense
    return DenseRecord(
        units=dense.units,
        bias=given_or_default(dense, "bias"),
        initializer=read_initializer(dense.initializer if dense.HasField("initializer") else None, reading),
    )


def _flatten(message: Layer, reading: Reading) -> LayerRecord:
    return FlattenRecord()


def _reshape(message: Layer, reading: Reading) -> LayerRecord:
    return ReshapeRecord(tuple(message.reshape.shape))


READERS: dict[str, LayerReader] = {"dense": _dense, "flatten": _flatten, "reshape": _reshape}
