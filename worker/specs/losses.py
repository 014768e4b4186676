"""Losses as records, and the penalties on the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

from lockstep.contract.errors import UserError, Violation
from lockstep.v1.optimization_pb2 import Loss
from worker.specs.records import LossRecord, not_one_of, option_not_built


@final
@dataclass(frozen=True, slots=True)
class SoftmaxCrossEntropyRecord(LossRecord):
    """-log softmax(z)[label]."""

    kind: ClassVar[str] = "softmax_cross_entropy"


@final
@dataclass(frozen=True, slots=True)
class MeanSquaredErrorRecord(LossRecord):
    """Mean over the outputs of (y - target)^2."""

    kind: ClassVar[str] = "mean_squared_error"


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
    if options.label_smoothing:
        wrong.append(option_not_built(f"{place}.label_smoothing", options.label_smoothing))
    if options.class_weights:
        wrong.append(option_not_built(f"{place}.class_weights", f"{len(options.class_weights)} weights"))
    if options.HasField("ignored_label"):
        wrong.append(option_not_built(f"{place}.ignored_label", options.ignored_label))
    return SoftmaxCrossEntropyRecord()


def _mean_squared_error(loss: Loss, wrong: list[Violation]) -> LossRecord:
    return MeanSquaredErrorRecord()


_LOSSES: dict[str, Callable[[Loss, list[Violation]], LossRecord]] = {
    "softmax_cross_entropy": _softmax_cross_entropy,
    "mean_squared_error": _mean_squared_error,
}


def loss_record(loss: Loss) -> LossRecord:
    """The record of a loss. Raises UserError for a kind or an option that is not built."""
    wrong: list[Violation] = []
    kind = loss.WhichOneof("kind") or ""
    make = _LOSSES.get(kind)
    record = make(loss, wrong) if make else None
    if record is None:
        wrong.append(not_one_of("loss", "loss", kind, _LOSSES))
    if wrong or record is None:
        raise UserError(wrong)
    return record
