"""Losses as records, and the penalties on the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

from lockstep.contract.errors import UserError, Violation
from lockstep.v1.optimization_pb2 import Loss
from worker.specs.records import LossRecord, given_or_default, none_given


@final
@dataclass(frozen=True, slots=True)
class SoftmaxCrossEntropyRecord(LossRecord):
    """-log softmax(z)[label]. `class_weights` is empty for 1 each; `ignored_label` is a label that counts for nothing."""

    kind: ClassVar[str] = "softmax_cross_entropy"
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    ignored_label: int | None = None


@final
@dataclass(frozen=True, slots=True)
class BinaryCrossEntropyRecord(LossRecord):
    """-log of a sigmoid, for labels 0 and 1."""

    kind: ClassVar[str] = "binary_cross_entropy"


@final
@dataclass(frozen=True, slots=True)
class MeanSquaredErrorRecord(LossRecord):
    """Mean over the outputs of (y - target)^2."""

    kind: ClassVar[str] = "mean_squared_error"


@final
@dataclass(frozen=True, slots=True)
class MeanAbsoluteErrorRecord(LossRecord):
    """Mean over the outputs of |y - target|."""

    kind: ClassVar[str] = "mean_absolute_error"


@final
@dataclass(frozen=True, slots=True)
class HuberRecord(LossRecord):
    """Mean over the outputs of d^2 / 2 for |d| <= delta, delta * (|d| - delta / 2) beyond."""

    kind: ClassVar[str] = "huber"
    delta: float = 1.0


@final
@dataclass(frozen=True, slots=True)
class PenaltyRecord:
    """l1 * sum of |w| and l2 / 2 * sum of w^2 over the weights."""

    l1: float
    l2: float


def penalty_record(loss: Loss) -> PenaltyRecord:
    """The penalties that come with a loss."""
    return PenaltyRecord(loss.l1, loss.l2)


def _softmax_cross_entropy(loss: Loss, wrong: list[Violation]) -> LossRecord:
    options = loss.softmax_cross_entropy
    place = "loss.softmax_cross_entropy"
    if not 0 <= options.label_smoothing < 1:
        remedy = "it must be at least 0 and below 1"
        wrong.append(Violation(f"{place}.label_smoothing", str(options.label_smoothing), remedy))
    for index, weight in enumerate(options.class_weights):
        _positive(f"{place}.class_weights[{index}]", weight, wrong)
    ignored = options.ignored_label if options.HasField("ignored_label") else None
    return SoftmaxCrossEntropyRecord(options.label_smoothing, tuple(options.class_weights), ignored)


def _huber(loss: Loss, wrong: list[Violation]) -> LossRecord:
    delta = given_or_default(loss.huber, "delta")
    _positive("loss.huber.delta", delta, wrong)
    return HuberRecord(delta)


_LOSSES: dict[str, Callable[[Loss, list[Violation]], LossRecord]] = {
    "softmax_cross_entropy": _softmax_cross_entropy,
    "binary_cross_entropy": lambda loss, wrong: BinaryCrossEntropyRecord(),
    "mean_squared_error": lambda loss, wrong: MeanSquaredErrorRecord(),
    "mean_absolute_error": lambda loss, wrong: MeanAbsoluteErrorRecord(),
    "huber": _huber,
}


def _positive(place: str, value: float, wrong: list[Violation]) -> None:
    if not (value > 0 and math.isfinite(value)):
        wrong.append(Violation(place, str(value), "it must be above 0 and finite"))


def loss_record(loss: Loss) -> LossRecord:
    """The record of a loss. Raises UserError where no kind is given or an option has a value that cannot be."""
    wrong: list[Violation] = []
    kind = loss.WhichOneof("kind") or ""
    make = _LOSSES.get(kind)
    record = make(loss, wrong) if make else None
    if record is None:
        wrong.append(none_given("loss", "loss", _LOSSES))
    if wrong or record is None:
        raise UserError(wrong)
    return record
