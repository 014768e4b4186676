"""Learning rates: functions of the step, and of what the controller makes of the evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from worker.nn.optimizers import power
from worker.specs import (
    ConstantSchedule,
    CosineSchedule,
    ExponentialSchedule,
    OneCycleSchedule,
    OptimizerRecord,
    PlateauSchedule,
    PolynomialSchedule,
    StepSchedule,
)


def _constant(schedule: ConstantSchedule, progress: float, epochs: int) -> float:
    return 1.0


def _step(schedule: StepSchedule, progress: float, epochs: int) -> float:
    return power(schedule.factor, epochs // schedule.every_epochs)


def _exponential(schedule: ExponentialSchedule, progress: float, epochs: int) -> float:
    return power(schedule.factor, epochs)


def _cosine(schedule: CosineSchedule, progress: float, epochs: int) -> float:
    return schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * progress)) / 2


def _one_cycle(schedule: OneCycleSchedule, progress: float, epochs: int) -> float:
    start, end = 1 / schedule.start_divisor, 1 / schedule.end_divisor
    if progress < schedule.rise:
        return start + (1 - start) * progress / schedule.rise
    return 1 + (end - 1) * (progress - schedule.rise) / (1 - schedule.rise)


def _polynomial(schedule: PolynomialSchedule, progress: float, epochs: int) -> float:
    whole = int(schedule.power)
    return power(1 - progress, whole) if whole == schedule.power else math.pow(1 - progress, schedule.power)


def _plateau(schedule: PlateauSchedule, progress: float, epochs: int) -> float:
    return 1.0  # its factor is no function of the step: it comes as `rate_factor`


# From a schedule's record to its factor, given the part of the steps after the warm-up that came before, and the whole epochs
# that fit into them.
SCHEDULES: dict[type[Any], Callable[[Any, float, int], float]] = {
    ConstantSchedule: _constant,
    StepSchedule: _step,
    ExponentialSchedule: _exponential,
    CosineSchedule: _cosine,
    OneCycleSchedule: _one_cycle,
    PolynomialSchedule: _polynomial,
    PlateauSchedule: _plateau,
}


def learning_rate(
    optimizer: OptimizerRecord, step: int, steps_per_epoch: int, total_steps: int, rate_factor: float = 1.0
) -> float:
    """The optimizer's rate times its schedule's factor at `step` (from 1) times `rate_factor`, in float64.

    `rate_factor` is what the job's evaluations made of the rate, under reduce-on-plateau; else 1. Over the warm-up the
    schedule's factor rises in equal parts to its first: at step t of w it is t / w of it. A schedule begins after the warm-up:
    the progress of cosine, one-cycle and polynomial is the number of steps since over all such steps, from 0 to just below 1,
    and an epoch of step and exponential are `steps_per_epoch` steps since.
    """
    schedule, rate = optimizer.schedule, optimizer.learning_rate
    factor, warmup = SCHEDULES[type(schedule)], schedule.warmup_steps
    if step <= warmup:
        return rate * factor(schedule, 0.0, 0) * (step / warmup) * rate_factor
    before = step - warmup - 1
    return rate * factor(schedule, before / (total_steps - warmup), before // steps_per_epoch) * rate_factor
