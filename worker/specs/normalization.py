"""The records of batch, layer and RMS normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from lockstep.v1.model_pb2 import Layer
from worker.specs.records import LayerReader, LayerRecord, Reading, given_or_default


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
        momentum=given_or_default(norm, "momentum"),
        epsilon=given_or_default(norm, "epsilon"),
    )


def _layer_norm(message: Layer, reading: Reading) -> LayerRecord:
    return LayerNormRecord(given_or_default(message.layer_norm, "epsilon"))


def _rms_norm(message: Layer, reading: Reading) -> LayerRecord:
    return RmsNormRecord(given_or_default(message.rms_norm, "epsilon"))


READERS: dict[str, LayerReader] = {"batch_norm": _batch_norm, "layer_norm": _layer_norm, "rms_norm": _rms_norm}
