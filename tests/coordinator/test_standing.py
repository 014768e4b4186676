"""Where a run stands, as people are told of it: the time that remains, the last evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.standing import Standing
from coordinator.stretches import Stretch
from lockstep.internal.v1 import worker_pb2
from lockstep.v1 import training_job_pb2 as job
from tests.coordinator.small_job import make_order
from tests.coordinator.test_controller import MANIFEST

ONE = [job.WorkerInfo(rank=0, node="a", pid=1)]


def taken(at: Standing, first: int, last: int, seconds: float) -> float | None:
    """The time that remains, as is told after a stretch."""
    at.stepped([worker_pb2.StretchReply(step=last)])
    said = at.message(Stretch(first, last), seconds)
    return said.remaining_seconds if said.HasField("remaining_seconds") else None


def test_the_time_left_is_that_of_this_groups_steps_without_its_first_stretch(tmp_path: Path) -> None:
    order = make_order(tmp_path)
    order.plan.total_steps = 100
    at = Standing(order)
    at.formed(ONE)
    assert taken(at, 1, 1, 60.0) is None  # warms up
    assert taken(at, 2, 3, 0.25) is None  # too short to tell
    assert taken(at, 4, 10, 1.55) == pytest.approx(90 * 0.2)
    at.formed(ONE)  # after a recovery
    assert taken(at, 11, 11, 60.0) is None
    assert taken(at, 12, 20, 0.9) is None
    assert taken(at, 21, 30, 1.0) == pytest.approx(70 * 0.1)


def test_what_is_said_only_after_a_recovery_of_the_stretch_before_it_times_nothing(tmp_path: Path) -> None:
    at = Standing(make_order(tmp_path))
    at.formed(ONE)
    taken(at, 1, 1, 1.0)
    at.stepped([worker_pb2.StretchReply(step=2)])
    at.formed(ONE)
    assert not at.message(Stretch(2, 2), 600.0).HasField("remaining_seconds")
    assert taken(at, 3, 3, 60.0) is None


@pytest.mark.parametrize("kind", [job.TrainingJob.TRAINING, job.TrainingJob.VERIFY])
def test_a_replay_does_not_tell_the_evaluation_of_the_checkpoint_it_began_with(
    tmp_path: Path, kind: job.TrainingJob.Kind.ValueType
) -> None:
    order = make_order(tmp_path)
    order.kind = kind
    at = Standing(order)
    at.resume(replace(MANIFEST, validation_loss=0.5, validation_accuracy=0.75))
    at.formed(ONE)
    at.stepped([worker_pb2.StretchReply(step=31)])
    said = at.message(Stretch(31, 31), 1.0)
    assert said.HasField("validation_loss") == said.HasField("validation_accuracy") == (kind == job.TrainingJob.TRAINING)
