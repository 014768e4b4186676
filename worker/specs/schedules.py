"""Learning-rate schedules as records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

from lockstep.v1.optimization_pb2 import Schedule
from worker.specs.records import ScheduleRecord, given_or_default


@final
@dataclass(frozen=True, slots=True)
class ConstantSchedule(ScheduleRecord):
    """The factor is 1 at every step."""

    kind: ClassVar[str] = "constant"
    warmup_steps: int = 0


@final
@dataclass(frozen=True, slots=True)
class StepSchedule(ScheduleRecord):
    """Times `factor` after each `every_epochs`, counted from the end of the warm-up."""

    kind: ClassVar[str] = "step"
    every_epochs: int
    factor: float
    warmup_steps: int = 0


@final
@dataclass(frozen=True, slots=True)
class ExponentialSchedule(ScheduleRecord):
    """Times `factor` after each epoch, counted from the end of the warm-up."""

    kind: ClassVar[str] = "exponential"
    factor: float
    warmup_steps: int = 0


@final
@dataclass(frozen=True, slots=True)
class CosineSchedule(ScheduleRecord):
    """From 1 to `floor` along half a cosine."""

    kind: ClassVar[str] = "cosine"
    floor: float
    warmup_steps: int = 0


@final
@dataclass(frozen=True, slots=True)
class OneCycleSchedule(ScheduleRecord):
    """From 1 / start_divisor up to 1 over the part `rise` of the steps, then down to 1 / end_divisor."""

    kind: ClassVar[str] = "one_cycle"
    rise: float
    start_divisor: float
    end_divisor: float
    warmup_steps: int = 0


@final
@dataclass(frozen=True, slots=True)
class PolynomialSchedule(ScheduleRecord):
    """(1 - progress)^power."""

    kind: ClassVar[str] = "polynomial"
    power: float
    warmup_steps: int = 0


@final
@dataclass(frozen=True, slots=True)
class PlateauSchedule(ScheduleRecord):
    """Times `factor` after `patience` evaluations without a lower validation loss."""

    kind: ClassVar[str] = "plateau"
    factor: float
    patience: int
    warmup_steps: int = 0


def _step(schedule: Schedule, warmup_steps: int) -> ScheduleRecord:
    return StepSchedule(schedule.step.every_epochs, given_or_default(schedule.step, "factor"), warmup_steps)


def _one_cycle(schedule: Schedule, warmup_steps: int) -> ScheduleRecord:
    cycle = schedule.one_cycle
    return OneCycleSchedule(
        given_or_default(cycle, "rise"),
        given_or_default(cycle, "start_divisor"),
        given_or_default(cycle, "end_divisor"),
        warmup_steps,
    )


def _plateau(schedule: Schedule, warmup_steps: int) -> ScheduleRecord:
    plateau = schedule.plateau
    return PlateauSchedule(given_or_default(plateau, "factor"), given_or_default(plateau, "patience"), warmup_steps)


_READERS: dict[str, Callable[[Schedule, int], ScheduleRecord]] = {
    "constant": lambda schedule, warmup_steps: ConstantSchedule(warmup_steps),
    "step": _step,
    "exponential": lambda schedule, warmup_steps: ExponentialSchedule(schedule.exponential.factor, warmup_steps),
    "cosine": lambda schedule, warmup_steps: CosineSchedule(given_or_default(schedule.cosine, "floor"), warmup_steps),
    "one_cycle": _one_cycle,
    "polynomial": lambda schedule, warmup_steps: PolynomialSchedule(
        given_or_default(schedule.polynomial, "power"), warmup_steps
    ),
    "plateau": _plateau,
}


def read_schedule(schedule: Schedule) -> ScheduleRecord:
    """The record of a schedule; none given is constant."""
    return _READERS[schedule.WhichOneof("kind") or "constant"](schedule, schedule.warmup_steps)
