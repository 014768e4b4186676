"""Optimizers, learning-rate schedules and clipping as records."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, final

from lockstep.contract.errors import UserError, Violation
from lockstep.v1.optimization_pb2 import Optimizer
from worker.specs.records import OptimizerRecord, not_one_of


@final
@dataclass(frozen=True, slots=True)
class ConstantSchedule:
    """The factor is 1 at every step."""

    kind: ClassVar[str] = "constant"


ScheduleRecord: TypeAlias = ConstantSchedule


@final
@dataclass(frozen=True, slots=True)
class SgdRecord(OptimizerRecord):
    """w -= learning_rate * g."""

    kind: ClassVar[str] = "sgd"
    learning_rate: float
    schedule: ScheduleRecord


@final
@dataclass(frozen=True, slots=True)
class MomentumRecord(OptimizerRecord):
    """v = momentum * v + g; w -= learning_rate * v."""

    kind: ClassVar[str] = "momentum"
    learning_rate: float
    momentum: float
    schedule: ScheduleRecord


def _option(place: str, value: object) -> Violation:
    return Violation(place, str(value), "this option is not built yet; leave it out", "OPTION_NOT_BUILT")


def _rate(place: str, rate: float, wrong: list[Violation]) -> float:
    if not (rate > 0 and math.isfinite(rate)):
        wrong.append(Violation(f"{place}.learning_rate", str(rate), "it must be above 0 and finite"))
    return rate


def _sgd(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    return SgdRecord(_rate("optimizer.sgd", optimizer.sgd.learning_rate, wrong), schedule)


def _momentum(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    message = optimizer.momentum
    momentum = message.momentum if message.HasField("momentum") else 0.9
    if not 0 <= momentum < 1:
        wrong.append(Violation("optimizer.momentum.momentum", str(momentum), "it must be at least 0 and below 1"))
    return MomentumRecord(_rate("optimizer.momentum", message.learning_rate, wrong), momentum, schedule)


_OPTIMIZERS: dict[str, Callable[[Optimizer, ScheduleRecord, list[Violation]], OptimizerRecord]] = {
    "sgd": _sgd,
    "momentum": _momentum,
}

_SCHEDULES: dict[str, Callable[[], ScheduleRecord]] = {"constant": ConstantSchedule}


def optimizer_record(optimizer: Optimizer) -> OptimizerRecord:
    """The record of an optimizer with its schedule. Raises UserError for what is not built or out of range."""
    wrong: list[Violation] = []
    schedule: ScheduleRecord = ConstantSchedule()
    if optimizer.HasField("schedule"):
        shape = optimizer.schedule.WhichOneof("kind") or "constant"
        if shape in _SCHEDULES:
            schedule = _SCHEDULES[shape]()
        else:
            wrong.append(not_one_of("optimizer.schedule", "schedule", shape, _SCHEDULES))
        if optimizer.schedule.warmup_steps:
            wrong.append(_option("optimizer.schedule.warmup_steps", optimizer.schedule.warmup_steps))
    if optimizer.HasField("clipping"):
        wrong.append(_option("optimizer.clipping", optimizer.clipping.WhichOneof("kind") or "nothing"))
    kind = optimizer.WhichOneof("kind") or ""
    make = _OPTIMIZERS.get(kind)
    record = make(optimizer, schedule, wrong) if make else None
    if record is None:
        wrong.append(not_one_of("optimizer", "optimizer", kind, _OPTIMIZERS))
    if wrong or record is None:
        raise UserError(wrong)
    return record
