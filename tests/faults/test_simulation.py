"""Simulated runs: whatever goes wrong, twice and three times over, a job gives what it gives undisturbed, and says what was.

pytestmark = pytest.mark.faults

`python -m tests.faults.simulation --seed S` repeats a seed and prints what happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from coordinator.controller import Controller
from coordinator.members import Members
from coordinator.snapshots import Snapshot
from coordinator.standing import Standing
from coordinator.steps import Steps
from lockstep.contract.manifest import Manifest
from lockstep.internal.v1 import worker_pb2
from lockstep.v1 import training_job_pb2 as job
from services.jobs.transitions import State
from tests.faults.simulation.pairs import JOB, pairs
from tests.faults.simulation.plan import Fault, Kind, Moment
from tests.faults.simulation.simulation import Bench, Found

SEEDS_AT_ONCE = 500
SEEDS_FOR_A_DEFECT = 200


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A folder for simulations."""
    with Bench() as bench:
        yield bench


@pytest.mark.parametrize("first", range(0, 2000, SEEDS_AT_ONCE))
def test_seeds(bench: Bench, first: int) -> None:
    wrong: dict[int, list[str]] = {}
    struck: Counter[Kind] = Counter()
    for seed in range(first, first + SEEDS_AT_ONCE):
        found = bench.seed(seed)
        struck += found.faults.struck
        if found.wrong:
            wrong[seed] = found.wrong[:3]
    assert not wrong
    assert struck.keys() == set(Kind)  # each kind of fault has an effect somewhere


def test_all_pairs_of_points(bench: Bench) -> None:
    """A death at each call, of each worker or of the coordinator, and a second one at each call that then follows."""
    wrong, count = {}, 0
    for found in pairs(bench, [Moment.IN], every_act=False):
        count += 1
        assert found.state == State.SUCCEEDED
        if found.wrong:
            wrong[str(found.planned)] = found.wrong[:3]
    assert not wrong
    assert count > 1000


def test_a_coordinator_may_die_at_each_of_its_acts(bench: Bench) -> None:
    acts = bench.simulate(JOB, ()).faults.acts
    for at in range(1, acts + 1):
        found = bench.simulate(JOB, (Fault(Kind.STOP, at),))
        assert not found.wrong and (found.state, found.runs) == (State.SUCCEEDED, 2)


@pytest.mark.parametrize("kind", [Kind.FULL, Kind.NO_ROOM])
def test_a_full_disk_may_also_break_at_each_call(bench: Bench, kind: Kind) -> None:
    """Even then no half of a checkpoint is left."""
    acts = bench.simulate(JOB, ()).faults.acts
    for at in range(1, acts + 10):
        found = bench.simulate(JOB, (Fault(kind, 1, seconds=20.0), Fault(Kind.BROKEN, at)))
        assert not found.wrong and found.state == State.SUCCEEDED


def test_a_seed_is_the_same_every_time(bench: Bench) -> None:
    for seed in range(20):
        assert bench.seed(seed, kept=True).lines == bench.seed(seed, kept=True).lines


# What simulations found once.


def test_dropped_rows_are_counted_once(bench: Bench) -> None:
    """The state of a step cannot be had, then a worker fails to join: it speaks of the step that was dropped already."""
    lost = Fault(Kind.CUT, 6), Fault(Kind.EXCEPTION, 8, rank=1)
    _holds(bench.simulate(JOB, lost, kept=True), Kind.CUT, Kind.EXCEPTION)


def test_who_is_silent_while_another_is_mourned_is_named(bench: Bench) -> None:
    found = bench.simulate(JOB, (Fault(Kind.KILL, 2, rank=0), Fault(Kind.HANG, 2, rank=1)), kept=True)
    _holds(found, Kind.KILL, Kind.HANG)
    assert any("worker 1 (node b, pid 102) did not answer within 300 s; the run goes on" in line for line in found.lines)


def test_who_dies_before_joining_is_told(bench: Bench) -> None:
    found = bench.simulate(JOB, (Fault(Kind.KILL, 5), Fault(Kind.STILLBORN, 1), Fault(Kind.KILL, 30)), kept=True)
    _holds(found, Kind.KILL, Kind.STILLBORN)


def test_a_damaged_manifest_is_seen(bench: Bench) -> None:
    """A bit of it is flipped that leaves sound JSON, while no coordinator looks: the checkpoint before it is taken."""
    acts = bench.simulate(JOB, ()).faults.acts
    for part in range(0, 100, 4):
        flip = Fault(Kind.DAMAGE, 1, rank=0, moment=Moment.IN, part=part / 100)
        _holds(bench.simulate(JOB, (Fault(Kind.STOP, acts - 20), flip)), Kind.STOP, Kind.DAMAGE)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_death_and_a_pause_in_the_same_call(bench: Bench, workers: int) -> None:
    """Also in the last evaluation: the step is kept, and the next run has only to evaluate it."""
    small = replace(JOB, workers=workers)
    for call in range(1, bench.simulate(small, ()).faults.calls + 1):
        pause = Fault(Kind.PAUSE, call, part=0.01, seconds=2.0)
        _holds(bench.simulate(small, (Fault(Kind.KILL, call), pause)), Kind.KILL, Kind.PAUSE)


def test_a_death_while_a_step_is_left_out(bench: Bench) -> None:
    """Its update overflowed; the rows of what is taken again are counted, whoever dies at which call."""
    odd = replace(JOB, overflows=frozenset({1, 4}))
    for call in range(1, bench.simulate(odd, ()).faults.calls + 1):
        assert not bench.simulate(odd, (Fault(Kind.KILL, call),)).wrong


def _holds(found: Found, *kinds: Kind) -> None:
    assert not found.wrong
    assert found.state == State.SUCCEEDED
    assert found.faults.struck.keys() == set(kinds)


# Defects that are planted: simulations find them, and soon.


def _first_wrong(bench: Bench) -> tuple[int, list[str]]:
    for seed in range(SEEDS_FOR_A_DEFECT):
        found = bench.seed(seed)
        if found.wrong:
            return seed, found.wrong
    raise AssertionError(f"none of {SEEDS_FOR_A_DEFECT} seeds finds it")


def _has(wrong: Sequence[str], words: str) -> bool:
    return any(words in sentence for sentence in wrong)


def test_a_snapshot_of_the_wrong_step_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before: dict[int, Snapshot] = {}
    copied, give = Steps.copied, Members.give

    def keeping(self: Steps, members: Members, step: int) -> Snapshot:
        if self.snapshot is not None:
            before[step] = self.snapshot
        return copied(self, members, step)

    def giving(self: Members, snapshot: Snapshot) -> None:
        give(self, Snapshot(snapshot.step, before.get(snapshot.step, snapshot).vectors))

    monkeypatch.setattr(Steps, "copied", keeping)
    monkeypatch.setattr(Members, "give", giving)
    _, wrong = _first_wrong(bench)
    assert _has(wrong, "O1: the last manifest says weights_sha256")


def test_a_forgotten_controller_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    resume = Standing.resume

    def forgetting(self: Standing, manifest: Manifest) -> None:
        resume(self, manifest)
        self.controller = Controller(self.controller.schedule, self.controller.seen_step)

    monkeypatch.setattr(Standing, "resume", forgetting)
    _, wrong = _first_wrong(bench)
    assert _has(wrong, "O1: the last manifest says")


def test_a_stretch_that_is_counted_twice_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    formed, stepped = Standing.formed, Standing.stepped
    groups: Counter[int] = Counter()

    def forming(self: Standing, members: Sequence[job.WorkerInfo]) -> None:
        groups[id(self)] += 1
        formed(self, members)

    def stepping(self: Standing, replies: Sequence[worker_pb2.StretchReply]) -> None:
        again = groups[id(self)] > 1
        groups[id(self)] = 1
        stepped(self, replies)
        if again:
            stepped(self, replies)

    monkeypatch.setattr(Standing, "formed", forming)
    monkeypatch.setattr(Standing, "stepped", stepping)
    _, wrong = _first_wrong(bench)
    assert _has(wrong, "rows: ")
