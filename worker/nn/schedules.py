"""Learning rates: functions of the step alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker.specs import ConstantSchedule, OptimizerRecord


def _constant(schedule: ConstantSchedule, step: int, steps_per_epoch: int, total_steps: int) -> float:
    return 1.0


# From a schedule's record to its factor at a step, which counts from 1.
SCHEDULES: dict[type[Any], Callable[[Any, int, int, int], float]] = {ConstantSchedule: _constant}


def learning_rate(optimizer: OptimizerRecord, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The optimizer's rate times its schedule's factor at `step` (from 1), in float64."""
    factor = SCHEDULES[type(optimizer.schedule)](optimizer.schedule, step, steps_per_epoch, total_steps)
    return optimizer.learning_rate * factor
