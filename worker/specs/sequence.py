"""The records of embedding, positions and attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from lockstep.v1.model_pb2 import Layer, Positions
from worker.specs.records import LayerReader, LayerRecord, Reading


@final
@dataclass(frozen=True, slots=True)
class EmbeddingRecord(LayerRecord):
    """Row `index` of a table (vocabulary, width), for each number of a row."""

    kind: ClassVar[str] = "embedding"
    vocabulary: int
    width: int


@final
@dataclass(frozen=True, slots=True)
class PositionsRecord(LayerRecord):
    """A vector added at each position: `learned`, else sines and cosines."""

    kind: ClassVar[str] = "positions"
    learned: bool


@final
@dataclass(frozen=True, slots=True)
class AttentionRecord(LayerRecord):
    """Multi-head self-attention. Positions where the network's input is `padding_index` are not seen; None: all are."""

    kind: ClassVar[str] = "attention"
    heads: int
    causal: bool
    padding_index: int | None


def _attention(message: Layer, reading: Reading) -> LayerRecord:
    attention = message.attention
    padding_index = attention.padding_index if attention.HasField("padding_index") else None
    return AttentionRecord(attention.heads, attention.causal, padding_index)


READERS: dict[str, LayerReader] = {
    "embedding": lambda message, reading: EmbeddingRecord(message.embedding.vocabulary, message.embedding.width),
    "positions": lambda message, reading: PositionsRecord(message.positions.form != Positions.SINUSOIDAL),
    "attention": _attention,
}
