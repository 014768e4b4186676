"""The records of LSTM and GRU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from lockstep.v1.model_pb2 import Layer
from worker.specs.records import LayerReader, LayerRecord, Reading


@final
@dataclass(frozen=True, slots=True)
class LstmRecord(LayerRecord):
    """Long short-term memory over rows (length, width). `sequence` gives the state at each position, else the last."""

    kind: ClassVar[str] = "lstm"
    units: int
    sequence: bool


@final
@dataclass(frozen=True, slots=True)
class GruRecord(LayerRecord):
    """Gated recurrent unit over rows (length, width). `sequence` gives the state at each position, else the last."""

    kind: ClassVar[str] = "gru"
    units: int
    sequence: bool


def _lstm(message: Layer, reading: Reading) -> LayerRecord:
    return LstmRecord(message.lstm.units, message.lstm.sequence)


def _gru(message: Layer, reading: Reading) -> LayerRecord:
    return GruRecord(message.gru.units, message.gru.sequence)


READERS: dict[str, LayerReader] = {"lstm": _lstm, "gru": _gru}
