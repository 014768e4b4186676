"""Schedules against their closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from worker.nn.schedules import learning_rate
from worker.specs import (
    ConstantSchedule,
    CosineSchedule,
    ExponentialSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    PolynomialSchedule,
    ScheduleRecord,
    SgdRecord,
    StepSchedule,
)

STEPS, EPOCH = 100, 10


def rates(schedule: ScheduleRecord) -> list[float]:
    """The rates of steps 1 to 100 in epochs of 10, at a rate of 2."""
    return [learning_rate(SgdRecord(2.0, schedule), step, EPOCH, STEPS) for step in range(1, STEPS + 1)]


def test_constant() -> None:
    assert rates(ConstantSchedule()) == [2.0] * 100


def test_step_and_exponential_fall_between_epochs() -> None:
    assert rates(StepSchedule(3, 0.1)) == pytest.approx([2 * 0.1 ** (t // 30) for t in range(100)], rel=1e-14)
    assert rates(ExponentialSchedule(0.7)) == pytest.approx([2 * 0.7 ** (t // 10) for t in range(100)], rel=1e-14)


def test_cosine_falls_from_one_to_its_floor() -> None:
    want = [2 * (0.1 + 0.9 * math.cos(math.pi * t / 200) ** 2) for t in range(100)]
    assert rates(CosineSchedule(0.1)) == pytest.approx(want, rel=1e-12)


def test_polynomial() -> None:
    assert rates(PolynomialSchedule(1)) == pytest.approx([2 * (100 - t) / 100 for t in range(100)], rel=1e-12)
    assert rates(PolynomialSchedule(2)) == pytest.approx([2 * ((100 - t) / 100) ** 2 for t in range(100)], rel=1e-12)
    assert rates(PolynomialSchedule(0.5)) == pytest.approx([2 * math.sqrt((100 - t) / 100) for t in range(100)], rel=1e-12)


def test_a_whole_power_is_a_product() -> None:
    left = [1 - t / 100 for t in range(100)]
    assert rates(PolynomialSchedule(3)) == [2 * (part * (part * part)) for part in left]
    assert rates(PolynomialSchedule(1e300))[:2] == [2.0, 0.0]


def test_one_cycle_rises_to_the_rate_and_ends_far_below_its_start() -> None:
    found = rates(OneCycleSchedule(0.3, 25, 10000))
    assert found[0] == pytest.approx(2 / 25)
    assert found[30] == pytest.approx(2)
    assert found == pytest.approx(
        [2 * (1 / 25 + (24 / 25) * t / 30) if t < 30 else 2 * (1 - (1 - 1e-4) * (t - 30) / 70) for t in range(100)], rel=1e-12
    )


def test_on_a_plateau_the_factor_is_what_the_evaluations_made_of_it() -> None:
    optimizer = SgdRecord(2.0, PlateauSchedule(0.1, 5, 20))
    assert rates(optimizer.schedule) == [2 * t / 20 for t in range(1, 21)] + [2.0] * 80
    assert learning_rate(optimizer, 10, EPOCH, STEPS, 0.3) == 2.0 * 0.5 * 0.3
    assert learning_rate(optimizer, 50, EPOCH, STEPS, 0.3) == 2.0 * 0.3


@pytest.mark.parametrize(
    "schedule",
    [
        ConstantSchedule(25),
        StepSchedule(2, 0.1, 25),
        ExponentialSchedule(0.7, 25),
        CosineSchedule(0, 25),
        OneCycleSchedule(0.3, 25, 10000, 25),
        PolynomialSchedule(1, 25),
    ],
)
def test_the_warm_up_comes_first_and_the_schedule_has_what_is_left(schedule: ScheduleRecord) -> None:
    found = rates(schedule)
    bare = replace(schedule, warmup_steps=0)  # type: ignore[type-var]
    after = [learning_rate(SgdRecord(2.0, bare), step, EPOCH, 75) for step in range(1, 76)]
    assert found[:25] == pytest.approx([after[0] * t / 25 for t in range(1, 26)])
    assert found[25:] == after


def test_epochs_count_from_the_end_of_the_warm_up() -> None:
    assert rates(ExponentialSchedule(0.5, 25))[24:] == [2 * 0.5 ** max(0, (t - 25) // 10) for t in range(24, 100)]
    assert rates(StepSchedule(3, 0.5, 25))[24:] == [2 * 0.5 ** max(0, (t - 25) // 30) for t in range(24, 100)]


def test_a_warm_up_longer_than_the_job_never_ends() -> None:
    assert rates(ConstantSchedule(400))[-1] == pytest.approx(0.5)
