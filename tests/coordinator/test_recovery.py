"""A run mends its group: whoever is lost, wherever, the weights, the curves and the counts are those of a run undisturbed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from coordinator import limits, members
from coordinator.group.local import LocalGroup
from lockstep.internal.v1 import agent_service_pb2 as agent
from tests.coordinator.one_run import Wanted, curve, kinds, run_once
from tests.coordinator.small_job import make_order
from tests.leftovers import abandoned_segments, gone, segments
from worker.failpoints import ALLOW
from worker.state_transfer import TransferError, fetch_state

pytestmark = pytest.mark.timeout(60)

EPOCHS = 4
STEPS = 12


@pytest.fixture(autouse=True)
def points_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, and in the workers that inherit it."""
    monkeypatch.setenv(ALLOW, "1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[agent.RunEnded, list[agent.RunEvent]]:
    """The job on one worker, from start to end."""
    files = tmp_path_factory.mktemp("undisturbed")
    return run_once(make_order(files, epochs=EPOCHS), files)


class Crash:
    """A run whose workers come to harm at these points; and what it left."""

    def __init__(
        self,
        files: Path,
        points: Iterable[str],
        workers: int = 3,
        wanted: Wanted | None = None,
        order: agent.RunOrder | None = None,
    ) -> None:
        self.order = order or make_order(files, epochs=EPOCHS, workers=workers)
        self.order.failpoints.extend(points)
        self.group = LocalGroup()
        self.pids: set[int] = set()
        self.wanted = wanted or Wanted()
        descriptors, shared = len(os.listdir("/proc/self/fd")), segments()
        real = self.group.call

        def call(*arguments: object, **named: object) -> object:
            self.pids |= set(self.group.pids())
            return real(*arguments, **named)  # type: ignore[arg-type]

        self.group.call = call  # type: ignore[assignment, method-assign]
        self.ended, self.events = run_once(self.order, files, self.wanted, make_group=lambda: self.group)
        assert all(gone(pid) for pid in self.pids)
        assert len(os.listdir("/proc/self/fd")) == descriptors and not abandoned_segments(shared)
        assert not [path for path in files.rglob("*") if path.suffix in (".tmp", ".old")]

    def told(self, word: str) -> list[str]:
        """The notices under a word."""
        return [event.notice.text for event in self.events if event.notice.reason == word]

    @property
    def groups(self) -> list[int]:
        """The sizes of the groups that were formed."""
        return [len(event.started.members) for event in self.events if event.WhichOneof("event") == "started"]

    def is_like(self, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]]) -> None:
        """Asserts that nobody can tell from weights, curves and counts what happened."""
        ended, events = undisturbed
        assert self.ended.outcome == agent.RunEnded.SUCCEEDED, self.ended.reason
        assert self.ended.result.weights_sha256 == ended.result.weights_sha256
        assert self.ended.result.validation_loss == ended.result.validation_loss
        assert curve(self.events) == curve(events)
        (last,) = [event.progress.progress for event in self.events if event.progress.progress.step == STEPS]
        assert last.applied_rows == self.order.plan.training_rows * EPOCHS
        assert sum(self.ended.computed_rows) == last.applied_rows + last.replayed_rows
        self.replayed_rows = last.replayed_rows


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize(
    ("name", "passing"),
    [
        ("step.before_forward", 5),
        ("step.after_backward", 5),
        ("reduce.after_post", 5),
        ("snapshot.when_offering_optimizer", 2),
        ("evaluation.when_begun", 2),
        ("stretch.when_done", 3),
    ],
)
def test_a_worker_killed_anywhere_changes_nothing(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]], name: str, passing: int, victim: int
) -> None:
    run = Crash(tmp_path, [f"run1/rank{victim}/{name}=kill@{passing}"])
    run.is_like(undisturbed)
    (said,) = run.told("WORKER_LOST")
    assert f"worker {victim} (node local, pid " in said and "SIGKILL" in said and "with 2 of 3 workers" in said
    assert kinds(run.events).count("recovering") == 1 and run.groups[:2] == [3, 2]
    if passing == 5:
        assert run.replayed_rows in (0, 64)  # whether the stretch began with step 4 or 5
    first, second = [event.started for event in run.events if event.WhichOneof("event") == "started"][:2]
    survivors = [member.pid for rank, member in enumerate(first.members) if rank != victim]
    assert [member.pid for member in second.members] == survivors


def test_a_worker_killed_in_the_midst_of_its_update_changes_nothing(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]]
) -> None:
    run = Crash(tmp_path, ["run1/rank0/reduce.when_half_done=kill@5"])  # the small net is one chunk, and rank 0 owns it
    run.is_like(undisturbed)
    assert run.groups[:2] == [3, 2]


def test_a_stopped_worker_is_named_by_its_peers_and_parted_with(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STEP_DEADLINE_FLOOR_S", 1.0)
    run = Crash(tmp_path, ["run1/rank1/step.after_backward=stop@5"])
    run.is_like(undisturbed)
    (said,) = run.told("WORKER_FAILED")
    # Whoever noticed it first says so, and the other that the first gave up for want of it.
    assert "worker 1 (node local)" in said and "step 5" in said and "with 2 of 3 workers" in said


@pytest.mark.parametrize(
    "fault",
    ["step.before_forward=raise:MemoryError", "reduce.when_half_done=raise:KeyError", "step.after_backward=raise:ValueError"],
)
def test_a_worker_that_fails_by_itself_is_replaced(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]], fault: str
) -> None:
    run = Crash(tmp_path, [f"run1/rank1/{fault}@5"])
    run.is_like(undisturbed)
    (said,) = run.told("WORKER_FAILED")
    assert "worker 1 (node local): " in said and "made by a failpoint" in said and run.groups[:2] == [3, 2]


def test_two_workers_lost_one_after_the_other_and_during_the_mending(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]]
) -> None:
    points = ["run1/rank2/reduce.when_half_done=kill@5", "run1/group2/rank0/snapshot.when_received=kill@1"]
    run = Crash(tmp_path, points)
    run.is_like(undisturbed)
    first, second = run.told("WORKER_LOST")
    assert "worker 2" in first and "taking steps 4 to 6" in first and "with 2 of 3 workers" in first
    assert "taking the snapshot after step 3" in second and "with 1 of 2 workers" in second
    assert run.groups[:2] == [3, 1]


def test_before_the_first_snapshot_the_others_begin_with_the_seed(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]]
) -> None:
    run = Crash(tmp_path, ["run1/rank1/step.before_forward=kill@1"])
    run.is_like(undisturbed)
    assert "goes on after step 0 with 2 of 3 workers" in run.told("WORKER_LOST")[0]


def test_a_run_that_went_on_from_a_checkpoint_goes_back_to_it(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]]
) -> None:
    wanted, asked = Wanted(), iter([False, False])
    wanted.paused = lambda: next(asked, True)  # type: ignore[method-assign]
    order = make_order(tmp_path, epochs=EPOCHS)
    paused, _ = run_once(order, tmp_path, wanted)
    assert paused.last_step == 3
    order = make_order(tmp_path, epochs=EPOCHS, workers=2, run_number=2)
    run = Crash(tmp_path, ["run2/rank1/step.before_forward=kill@1"], order=order)
    assert run.ended.result.weights_sha256 == undisturbed[0].result.weights_sha256
    assert "goes on after step 3 with 1 of 2 workers" in run.told("WORKER_LOST")[0]


def test_the_last_worker_is_replaced_and_nothing_is_lost(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]]
) -> None:
    run = Crash(tmp_path, ["run1/rank0/reduce.when_half_done=kill@5"], workers=1)
    run.is_like(undisturbed)
    recovering = [event.recovering.reason for event in run.events if event.WhichOneof("event") == "recovering"]
    assert "with 0 of 1 worker" in recovering[0] and "waits after step 3 with 0 of at least 1 worker" in recovering[1]
    assert run.groups == [1, 1] and "with 1 worker instead of 0" in run.told("WORKERS_CHANGED")[0]


def test_below_the_minimum_the_run_waits_and_heeds_a_pause(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]]
) -> None:
    order = make_order(tmp_path, epochs=EPOCHS, workers=2)
    order.spec.workers.min = 2
    wanted = Wanted()
    wanted.on_wait = lambda: setattr(wanted, "pause", True)
    run = Crash(tmp_path, ["run1/rank1/reduce.when_half_done=kill@5"], wanted=wanted, order=order)
    assert run.ended.outcome == agent.RunEnded.PAUSED and run.ended.last_step == run.ended.result.step == 3
    assert "1 of at least 2 workers" in run.events[-2].recovering.reason and kinds(run.events)[-1] == "checkpoint"
    order.run_number, order.furthest_step = 2, 3
    run = Crash(
        tmp_path, ["run2/rank1/reduce.when_half_done=kill@3"], order=order
    )  # now it waits until the replacement is there
    assert run.ended.result.weights_sha256 == undisturbed[0].result.weights_sha256
    assert run.groups == [2, 2]


def test_below_the_minimum_a_cancel_is_heeded(tmp_path: Path) -> None:
    order = make_order(tmp_path, epochs=EPOCHS, workers=2)
    order.spec.workers.min = 2
    wanted = Wanted()
    wanted.on_wait = lambda: setattr(wanted, "cancel", True)
    run = Crash(tmp_path, ["run1/rank1/reduce.when_half_done=kill@5"], wanted=wanted, order=order)
    assert run.ended.outcome == agent.RunEnded.CANCELLED and "after step 3" in run.ended.reason


def test_a_lower_minimum_lets_a_run_that_waits_go_on(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]]
) -> None:
    order = make_order(tmp_path, epochs=EPOCHS, workers=2)
    order.spec.workers.min = 2
    wanted = Wanted()
    wanted.on_wait = lambda: setattr(wanted, "minimum", 1)
    run = Crash(tmp_path, ["run1/rank1/reduce.when_half_done=kill@5"], wanted=wanted, order=order)
    run.is_like(undisturbed)
    assert run.groups[:2] == [2, 1]


def test_the_same_cause_three_times_ends_the_job_with_that_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HIRE_FIRST_S", 0.0)
    victims = ["run1/rank0", "run1/group2/rank0", "run1/group3/rank0"]
    run = Crash(tmp_path, [f"{victim}/step.before_forward=raise:KeyError@1" for victim in victims], workers=1)
    assert run.ended.outcome == agent.RunEnded.FAILED
    assert (
        run.ended.reason.startswith("worker 0 (node local): KeyError: 'made by a failpoint'") and "3 groups" in run.ended.reason
    )
    points = [f"{victim}/step.before_forward=kill:SIGSEGV@1" for victim in victims]
    crashes = Crash(tmp_path, points, order=make_order(tmp_path, job_id="small-2"))
    assert crashes.ended.outcome == agent.RunEnded.FAILED and "SIGSEGV" in crashes.ended.reason


def test_kills_from_outside_are_borne_as_long_as_there_is_time(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Crash(tmp_path, [f"run1/rank{rank}/step.before_forward=kill@1" for rank in range(4)], workers=4)
    run.is_like(undisturbed)
    monkeypatch.setattr(limits, "NO_PROGRESS_S", 0.0)
    order = make_order(tmp_path, workers=2, job_id="small-2")
    given_up = Crash(tmp_path, ["run1/rank1/step.before_forward=kill@1"], order=order)
    assert (given_up.ended.outcome, given_up.ended.cause) == (agent.RunEnded.LOST, agent.RunEnded.OUTSIDE)
    assert "no stretch completed" in given_up.ended.reason


def test_workers_that_cannot_start_end_the_job_with_what_they_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HIRE_FIRST_S", "HIRE_AGAIN_S"):
        monkeypatch.setattr(limits, name, 0.0)
    group = LocalGroup("tests.coordinator.fakes:BrokenWorker")
    ended, _ = run_once(make_order(tmp_path), tmp_path, make_group=lambda: group)
    assert ended.outcome == agent.RunEnded.FAILED and "exit code 1" in ended.reason


class Held(Wanted):
    """Holds the run after a step until something is so."""

    def __init__(self) -> None:
        super().__init__()
        self.until: Callable[[], bool] = lambda: True

    def paused(self) -> bool:
        end = time.monotonic() + 30
        while not self.until():
            assert time.monotonic() < end
            time.sleep(0.02)
        return False


def test_more_and_fewer_workers_join_and_leave_between_stretches(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]]
) -> None:
    wanted, group, sizes = Held(), LocalGroup(), [3, 1, 2]
    meetings = 0

    def change() -> bool:
        nonlocal meetings
        meetings += 1
        if meetings in (2, 3, 4):
            wanted.count = sizes[meetings - 2]
            group.hire(max(0, wanted.count - group.size))
            wanted.until = lambda: group.arrived() == max(0, wanted.count - group.size)
            return wanted.until()
        return True

    wanted.until = lambda: True
    real = wanted.paused
    wanted.paused = lambda: (change(), real())[1]  # type: ignore[method-assign]
    order = make_order(tmp_path, epochs=EPOCHS, workers=4)
    # It never waits for slots that it has not been given.
    wanted.count = wanted.minimum = 2
    ended, events = run_once(order, tmp_path, wanted, make_group=lambda: group)
    started = [event.started for event in events if event.WhichOneof("event") == "started"]
    assert [(len(event.members), event.resizable) for event in started] == [(2, True), (3, True), (1, True), (2, True)]
    assert ended.result.weights_sha256 == undisturbed[0].result.weights_sha256 and curve(events) == curve(undisturbed[1])
    assert sum(ended.computed_rows) == order.plan.training_rows * EPOCHS
    assert {member.pid for member in started[1].members} > {member.pid for member in started[0].members}
    changed = [event.notice.text for event in events if event.notice.reason == "WORKERS_CHANGED"]
    assert "with 3 workers instead of 2" in changed[0] and "with 1 worker instead of 3" in changed[1]


def test_a_worker_that_dies_while_its_state_is_read_is_named_with_its_end(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    group, real, calls = LocalGroup(), fetch_state, 0

    def die(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            os.kill(group.pids()[1], signal.SIGKILL)
            raise TransferError("its segment cannot be opened")
        return real(*arguments)

    monkeypatch.setattr(members, "fetch_state", die)
    ended, events = run_once(make_order(tmp_path, epochs=EPOCHS, workers=2), tmp_path, make_group=lambda: group)
    assert ended.result.weights_sha256 == undisturbed[0].result.weights_sha256 and curve(events) == curve(undisturbed[1])
    (said,) = [event.notice.text for event in events if event.notice.reason == "WORKER_LOST"]
    assert "worker 1" in said and "SIGKILL" in said
