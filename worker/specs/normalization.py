"""The records of batch, layer and RMS normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from lockstep.v1.model_pb2 import Layer
from worker.specs.records import LayerReader, LayerRecord, Reading


@final
@dataclass(frozen=True, slots=True)
class BatchNormRecord(LayerRecord):
    """(x - mean) / sqrt(variance + epsilon) * scale + shift for each channel, over a shard's rows and all positions.

    `momentum` is the weight of the old running mean and variance at each step.
    """

    kind: ClassVar[str] = "batch_norm"
    batch_statistics: ClassVar[bool] = True
    momentum: float = 0.9
    epsilon: float = 1e-5


@final
@dataclass(frozen=True, slots=True)
class LayerNormRecord(LayerRecord):
    """(x - mean) / sqrt(variance + epsilon) * scale + shift over the last axis of a row."""

    kind: ClassVar[str] = "layer_norm"
    epsilon: float = 1e-5


@final
@dataclass(frozen=True, slots=True)
class RmsNormRecord(LayerRecord):
    """x / sqrt(mean of x^2 + epsilon) * scale over the last axis of a row."""

    kind: ClassVar[str] = "rms_norm"
    epsilon: float = 1e-6


def _batch_norm(message: Layer, reading: Reading) -> LayerRecord:
    norm = message.batch_norm
    return BatchNormRecord(
        momentum=norm.momentum if norm.HasField("momentum") else 0.9,
        epsilon=norm.epsilon if norm.HasField("epsilon") else 1e-5,
    )


def _layer_norm(message: Layer, reading: Reading) -> LayerRecord:
    return LayerNormRecord(message.layer_norm.epsilon if message.layer_norm.HasField("epsilon") else 1e-5)


def _rms_norm(message: Layer, reading: Reading) -> LayerRecord:
    return RmsNormRecord(message.rms_norm.epsilon if message.rms_norm.HasField("epsilon") else 1e-6)


READERS: dict[str, LayerReader] = {"batch_norm": _batch_norm, "layer_norm": _layer_norm, "rms_norm": _rms_norm}
