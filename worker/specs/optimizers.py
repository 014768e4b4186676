"""Optimizers as records."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

from lockstep.contract.errors import UserError, Violation
from lockstep.v1.optimization_pb2 import Adam, AdamW, Lamb, Optimizer
from worker.specs.clipping import check_clipping
from worker.specs.records import OptimizerRecord, ScheduleRecord, given_or_default, none_given
from worker.specs.schedules import read_schedule


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
    state_names: ClassVar[tuple[str, ...]] = ("velocity",)
    learning_rate: float
    momentum: float
    schedule: ScheduleRecord


@final
@dataclass(frozen=True, slots=True)
class NesterovRecord(OptimizerRecord):
    """v = momentum * v + g; w -= learning_rate * (g + momentum * v)."""

    kind: ClassVar[str] = "nesterov"
    state_names: ClassVar[tuple[str, ...]] = ("velocity",)
    learning_rate: float
    momentum: float
    schedule: ScheduleRecord


@final
@dataclass(frozen=True, slots=True)
class AdagradRecord(OptimizerRecord):
    """s += g^2; w -= learning_rate * g / (sqrt(s) + epsilon)."""

    kind: ClassVar[str] = "adagrad"
    state_names: ClassVar[tuple[str, ...]] = ("squares",)
    learning_rate: float
    epsilon: float
    schedule: ScheduleRecord


@final
@dataclass(frozen=True, slots=True)
class RmsPropRecord(OptimizerRecord):
    """s = decay * s + (1 - decay) * g^2; w -= learning_rate * g / (sqrt(s) + epsilon)."""

    kind: ClassVar[str] = "rmsprop"
    state_names: ClassVar[tuple[str, ...]] = ("squares",)
    learning_rate: float
    decay: float
    epsilon: float
    schedule: ScheduleRecord


@final
@dataclass(frozen=True, slots=True)
class AdamRecord(OptimizerRecord):
    """Averages of gradient and square, both corrected for their start."""

    kind: ClassVar[str] = "adam"
    state_names: ClassVar[tuple[str, ...]] = ("mean", "squares")
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
    state_names: ClassVar[tuple[str, ...]] = ("mean", "squares")
    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    schedule: ScheduleRecord


@final
@dataclass(frozen=True, slots=True)
class LambRecord(OptimizerRecord):
    """Adam's direction with weight_decay * w; w -= learning_rate * norm(w) / norm(direction) * direction, by tensor."""

    kind: ClassVar[str] = "lamb"
    state_names: ClassVar[tuple[str, ...]] = ("mean", "squares")
    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    schedule: ScheduleRecord


def _rate(place: str, rate: float, wrong: list[Violation]) -> float:
    if not (rate > 0 and math.isfinite(rate)):
        wrong.append(Violation(f"{place}.learning_rate", str(rate), "it must be above 0 and finite"))
    return rate


def _sgd(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    return SgdRecord(_rate("optimizer.sgd", optimizer.sgd.learning_rate, wrong), schedule)


def _momentum(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    message = optimizer.momentum
    momentum = given_or_default(message, "momentum")
    if not 0 <= momentum < 1:
        wrong.append(Violation("optimizer.momentum.momentum", str(momentum), "it must be at least 0 and below 1"))
    return MomentumRecord(_rate("optimizer.momentum", message.learning_rate, wrong), momentum, schedule)


def _nesterov(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    message = optimizer.nesterov
    momentum = given_or_default(message, "momentum")
    return NesterovRecord(_rate("optimizer.nesterov", message.learning_rate, wrong), momentum, schedule)


def _adagrad(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    message = optimizer.adagrad
    epsilon = given_or_default(message, "epsilon")
    return AdagradRecord(_rate("optimizer.adagrad", message.learning_rate, wrong), epsilon, schedule)


def _rmsprop(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    message = optimizer.rmsprop
    decay, epsilon = given_or_default(message, "decay"), given_or_default(message, "epsilon")
    return RmsPropRecord(_rate("optimizer.rmsprop", message.learning_rate, wrong), decay, epsilon, schedule)


def _averages(message: Adam | AdamW | Lamb) -> tuple[float, float, float]:
    """beta1, beta2 and epsilon."""
    return given_or_default(message, "beta1"), given_or_default(message, "beta2"), given_or_default(message, "epsilon")


def _adam(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    rate = _rate("optimizer.adam", optimizer.adam.learning_rate, wrong)
    return AdamRecord(rate, *_averages(optimizer.adam), schedule)


def _adamw(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    message = optimizer.adamw
    rate, decay = _rate("optimizer.adamw", message.learning_rate, wrong), given_or_default(message, "weight_decay")
    return AdamWRecord(rate, *_averages(message), decay, schedule)


def _lamb(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    message = optimizer.lamb
    rate, decay = _rate("optimizer.lamb", message.learning_rate, wrong), given_or_default(message, "weight_decay")
    return LambRecord(rate, *_averages(message), decay, schedule)


_OPTIMIZERS: dict[str, Callable[[Optimizer, ScheduleRecord, list[Violation]], OptimizerRecord]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "adam": _adam,
    "adamw": _adamw,
    "lamb": _lamb,
}


def optimizer_record(optimizer: Optimizer) -> OptimizerRecord:
    """The record of an optimizer with its schedule. Raises UserError for what is missing or out of range."""
    wrong: list[Violation] = []
    schedule = read_schedule(optimizer.schedule)
    check_clipping(optimizer, wrong)
    kind = optimizer.WhichOneof("kind") or ""
    make = _OPTIMIZERS.get(kind)
    record = make(optimizer, schedule, wrong) if make else None
    if record is None:
        wrong.append(none_given("optimizer", "optimizer", _OPTIMIZERS))
    if wrong or record is None:
        raise UserError(wrong)
    return record
