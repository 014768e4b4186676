"""The records of the elementwise layers, of softmax and of dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from lockstep.v1.model_pb2 import Layer
from worker.specs.records import LayerReader, LayerRecord, Reading


@final
@dataclass(frozen=True, slots=True)
class ReluRecord(LayerRecord):
    """max(x, 0)."""

    kind: ClassVar[str] = "relu"


def _relu(message: Layer, reading: Reading) -> LayerRecord:
    return ReluRecord()


READERS: dict[str, LayerReader] = {"relu": _relu}
