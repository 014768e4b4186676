"""Shapes of batch, layer and RMS normalization: what goes in comes out."""

from __future__ import annotations

import math
from typing import Any

from worker.nn.shapes.shape import ONE, ZERO, Outcome, Refusals, Role, Rule, Shape, TensorShape
from worker.specs import BatchNormRecord, LayerNormRecord, RmsNormRecord


def _check_epsilon(epsilon: float, refusals: Refusals) -> None:
    if not 0 < epsilon < math.inf:
        refusals.field("epsilon", epsilon, "it must be above 0 and finite")


def _batch_norm(record: BatchNormRecord, shape: Shape, refusals: Refusals) -> Outcome:
    _check_epsilon(record.epsilon, refusals)
    if not 0 <= record.momentum < 1:
        refusals.field("momentum", record.momentum, "it must be at least 0 and below 1")
    channels, keep = (shape[-1],), record.momentum
    return Outcome(
        shape,
        {
            "scale": TensorShape.plain(channels, ONE, Role.OFFSET),
            "shift": TensorShape.plain(channels, ZERO, Role.OFFSET),
            "running_mean": TensorShape.plain(channels, ZERO, Role.STATE, keep),
            "running_variance": TensorShape.plain(channels, ONE, Role.STATE, keep),
        },
        kept=math.prod(shape),
    )


def _layer_norm(record: LayerNormRecord, shape: Shape, refusals: Refusals) -> Outcome:
    _check_epsilon(record.epsilon, refusals)
    width = shape[-1:]
    tensors = {"scale": TensorShape.plain(width, ONE, Role.OFFSET), "shift": TensorShape.plain(width, ZERO, Role.OFFSET)}
    return Outcome(shape, tensors, kept=math.prod(shape))


def _rms_norm(record: RmsNormRecord, shape: Shape, refusals: Refusals) -> Outcome:
    _check_epsilon(record.epsilon, refusals)
    return Outcome(shape, {"scale": TensorShape.plain(shape[-1:], ONE, Role.OFFSET)}, kept=math.prod(shape))


RULES: dict[type[Any], Rule] = {BatchNormRecord: _batch_norm, LayerNormRecord: _layer_norm, RmsNormRecord: _rms_norm}
