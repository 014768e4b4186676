"""Optimizers as records."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

from lockstep.contract.errors import UserError, Violation
from lockstep.v1.optimization_pb2 import Adam, AdamW, Optimizer
from worker.specs.records import OptimizerRecord, not_one_of
from worker.specs.schedules import ScheduleRecord, read_schedule


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
    states: ClassVar[int] = 1
    learning_rate: float
    momentum: float
    schedule: ScheduleRecord


@final
@dataclass(frozen=True, slots=True)
class NesterovRecord(OptimizerRecord):
    """v = momentum * v + g; w -= learning_rate * (g + momentum * v)."""

    kind: ClassVar[str] = "nesterov"
    states: ClassVar[int] = 1
    learning_rate: float
    momentum: float
    schedule: ScheduleRecord


@final
@dataclass(frozen=True, slots=True)
class AdagradRecord(OptimizerRecord):
    """s += g^2; w -= learning_rate * g / (sqrt(s) + epsilon)."""

    kind: ClassVar[str] = "adagrad"
    states: ClassVar[int] = 1
    learning_rate: float
    epsilon: float
    schedule: ScheduleRecord


@final
@dataclass(frozen=True, slots=True)
class RmsPropRecord(OptimizerRecord):
    """s = decay * s + (1 - decay) * g^2; w -= learning_rate * g / (sqrt(s) + epsilon)."""

    kind: ClassVar[str] = "rmsprop"
    states: ClassVar[int] = 1
    learning_rate: float
    decay: float
    epsilon: float
    schedule: ScheduleRecord


@final
@dataclass(frozen=True, slots=True)
class AdamRecord(OptimizerRecord):
    """Averages of gradient and square, both corrected for their start."""

    kind: ClassVar[str] = "adam"
    states: ClassVar[int] = 2
    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    schedule: ScheduleRecord


@final
@dataclass(frozen=True, slots=True)
class AdamWRecord(OptimizerRecord):
    """Adam, and w -= learning_rate * weight_decay * w for the weights, not for biases."""

    kind: ClassVar[str] = "adamw"
    states: ClassVar[int] = 2
    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
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


def _nesterov(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    message = optimizer.nesterov
    momentum = message.momentum if message.HasField("momentum") else 0.9
    return NesterovRecord(_rate("optimizer.nesterov", message.learning_rate, wrong), momentum, schedule)


def _adagrad(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    message = optimizer.adagrad
    epsilon = message.epsilon if message.HasField("epsilon") else 1e-10
    return AdagradRecord(_rate("optimizer.adagrad", message.learning_rate, wrong), epsilon, schedule)


def _rmsprop(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    message = optimizer.rmsprop
    decay = message.decay if message.HasField("decay") else 0.99
    epsilon = message.epsilon if message.HasField("epsilon") else 1e-8
    return RmsPropRecord(_rate("optimizer.rmsprop", message.learning_rate, wrong), decay, epsilon, schedule)


def _betas(message: Adam | AdamW) -> tuple[float, float, float]:
    """beta1, beta2 and epsilon, as given or by default."""
    return (
        message.beta1 if message.HasField("beta1") else 0.9,
        message.beta2 if message.HasField("beta2") else 0.999,
        message.epsilon if message.HasField("epsilon") else 1e-8,
    )


def _adam(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    rate = _rate("optimizer.adam", optimizer.adam.learning_rate, wrong)
    return AdamRecord(rate, *_betas(optimizer.adam), schedule)


def _adamw(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    message = optimizer.adamw
    decay = message.weight_decay if message.HasField("weight_decay") else 0.01
    return AdamWRecord(_rate("optimizer.adamw", message.learning_rate, wrong), *_betas(message), decay, schedule)


_OPTIMIZERS: dict[str, Callable[[Optimizer, ScheduleRecord, list[Violation]], OptimizerRecord]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "adam": _adam,
    "adamw": _adamw,
}


def optimizer_record(optimizer: Optimizer) -> OptimizerRecord:
    """The record of an optimizer with its schedule. Raises UserError for what is not built or out of range."""
    wrong: list[Violation] = []
    schedule = read_schedule(optimizer.schedule, wrong)
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
