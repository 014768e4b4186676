"""The benchmarks of groups and services, without peers and without a service: what is asked, read, counted and judged."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from benchmarks.allreduce import SIZES, verdict_of
from benchmarks.allreduce_race.ours import WORKERS, Member
from benchmarks.ddp import HEADS, cells
from benchmarks.ddp_race.cases import BY_NAME, CASES, DdpCase
from benchmarks.ddp_race.ours import applied_seconds, losses
from benchmarks.ddp_race.race import DDP, DEFAULT, MANY, ONE_DDP, ONE_WORKER, OURS, TORCH, Outcome
from benchmarks.engine_race.ours import job
from benchmarks.latency import Found
from benchmarks.observed_steps import ObservedSteps, first_step_of_next_group
from lockstep.contract.arithmetic import default_shards
from lockstep.v1.training_job_pb2 import JobEvent, TrainingJob
from worker.nn.shapes import parameter_layout
from worker.specs import architecture


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_a_job_of_whole_batches(case: DdpCase) -> None:
    layout = parameter_layout(architecture(job(case, 2).model, case.input_shape))
    assert layout.size >= case.parameters > 0
    assert case.rows % case.batch == 0 and case.batch % WORKERS == 0


def test_a_job_is_timed_from_its_group_to_its_last_step() -> None:
    def event(seconds: int) -> JobEvent:
        made = JobEvent()
        made.time.FromSeconds(seconds)
        return made

    events = [event(at) for at in (100, 110, 120, 130, 140, 150)]
    events[0].state_change.state = TrainingJob.STARTING
    events[1].state_change.state = TrainingJob.RUNNING
    events[2].points.step = 1
    events[2].points.points.add(name="loss", value=2.5)
    events[2].points.points.add(name="learning_rate", value=0.1)
    events[3].state_change.state = TrainingJob.RUNNING  # again, after a failure
    events[4].progress.step = events[4].progress.total_steps = 7
    events[5].state_change.state = TrainingJob.SUCCEEDED
    assert applied_seconds(events) == 30 and losses(events) == {1: 2.5}
    with pytest.raises(ValueError, match="last step"):
        applied_seconds(events[:4])


def outcome(name: str, **speeds: float) -> Outcome:
    case = BY_NAME[name]
    made = Outcome(case, default_shards(case.batch), dict.fromkeys((DDP, ONE_DDP, TORCH), "some way"))
    made.samples_per_s = {key.replace("_", " "): [value] * 3 for key, value in speeds.items()}
    made.loss_error = 1e-7
    return made


def test_what_is_below_its_floor_is_named() -> None:
    peers = {DDP: 100.0, ONE_DDP: 100.0, TORCH: 180.0}
    fast = outcome("784-512-256-10-b256", **{OURS: 195.0, DEFAULT: 150.0, ONE_WORKER: 120.0, **peers})
    assert fast.missed() == [] and len(cells(fast)) == len(HEADS) and cells(fast)[-1] == "holds"
    fast.loss_error = float("nan")
    assert fast.missed() == ["losses differ by nan"]
    slow = outcome("784-512-256-10-b256", **{OURS: 185.0, DEFAULT: 150.0, ONE_WORKER: 120.0, **peers})
    assert [text.rsplit(" ", 3)[0] for text in slow.missed()] == ["over DDP", "over one PyTorch process", "over one worker"]
    assert replace(outcome("784-512-256-10-b1024", **{OURS: 100.0, MANY: 84.0}), loss_error=None).missed() == [
        "8 shards over 2 0.84 < 0.85"
    ]
    assert verdict_of(SIZES[0], "shared memory", [90.0, 99.0, 120.0]) == ["16 KB over shared memory 99.00 < 100"]
    assert verdict_of(SIZES[0], "TCP on loopback", [0.5]) == []


def test_bounds_of_waits_are_of_medians() -> None:
    assert Found([0.1, 0.9, 7.0], [3.0], [0.3, 0.39, 2.0], [9.0], [50], [1.4], [4]).missed() == []
    late = Found([1.1], [], [0.5], [], [], [1.6], [4])
    assert len(late.missed()) == 3 and len(late.rows()) == 3


@pytest.fixture(params=[("a", "a"), ("a", "b")], ids=["shared memory", "TCP"])
def members(request: pytest.FixtureRequest) -> Iterator[list[Member]]:
    made = [Member(rank, 100_000, request.param) for rank in range(WORKERS)]
    endpoints = [member.endpoint() for member in made]
    together(lambda member: member.connect(endpoints), made)
    yield made
    for member in made:
        member.close()


def together(work: object, made: list[Member]) -> list[object]:
    """What each gives when both work at once."""
    assert callable(work)
    results: dict[int, object] = {}
    threads = [
        threading.Thread(target=lambda rank=rank, member=member: results.update({rank: work(member)}))
        for rank, member in enumerate(made)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[rank] for rank in range(len(made))]


def test_the_raced_reduction_gives_the_mean_on_both_workers(members: list[Member]) -> None:
    assert together(lambda member: member.right(), members) == [True, True]
    assert all(isinstance(seconds, float) for seconds in together(lambda member: member.turn(3), members))


def test_steps_are_counted_from_outside() -> None:
    alone = [Member(rank, 64, ("a", "a")) for rank in range(WORKERS)]
    endpoints = [member.endpoint() for member in alone]
    together(lambda member: member.connect(endpoints), alone)
    before = ObservedSteps.of(os.getpid())
    assert before is not None and before.count == 0
    together(lambda member: member.turn(4), alone)
    assert before.count == 5
    with pytest.raises(TimeoutError, match="no step in another group"):
        first_step_of_next_group(os.getpid(), before, 0.05)
    for member in alone:
        member.close()
    others = [Member(rank, 64, ("a", "a")) for rank in range(WORKERS)]
    endpoints = [member.endpoint() for member in others]
    together(lambda member: member.connect(endpoints), others)
    began = time.monotonic()
    together(lambda member: member.turn(1), others)
    assert began < first_step_of_next_group(os.getpid(), before, 5) < time.monotonic() + 1
    for member in others:
        member.close()
