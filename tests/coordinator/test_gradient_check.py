"""The run of a gradient check: its table, its verdict, and its end when something else comes first."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import final

import pytest

from coordinator import limits
from coordinator.exit_status import Cause
from coordinator.gradient_check import verdict, worst_error
from coordinator.group.group import GroupStartFailed, Replies, WorkerGroup, WorkerLoss, never, no_alarm
from coordinator.group.local import LocalGroup
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import training_job_pb2 as job
from tests.coordinator.one_run import Wanted, kinds, run_once
from tests.coordinator.small_job import make_order
from worker.nn.layers.dense import Dense
from worker.nn.parameters import Array
from worker.shard_worker import ShardWorker

pytestmark = pytest.mark.timeout(60)

TENSORS = ["0.dense.weight", "2.dense.weight", "0.dense.bias", "2.dense.bias"]


def check_order(files: Path, run_number: int = 1) -> agent.RunOrder:
    """A gradient check of the small job."""
    order = make_order(files, run_number=run_number)
    order.kind, order.plan.total_steps = job.TrainingJob.GRADIENT_CHECK, len(TENSORS)
    return order


@final
class GroupHere(WorkerGroup):
    """One worker inside the test's process; it can be lost at the call of a number."""

    def __init__(self, lost_at: int = -1) -> None:
        self._workers: list[ShardWorker] = []
        self._calls, self._lost_at = 0, lost_at

    @property
    def size(self) -> int:
        return len(self._workers)

    @property
    def here(self) -> str:
        return "local"

    def start(self, workers: int, deadline_s: float, interrupted: Callable[[], bool] = never) -> None:
        self._workers = [ShardWorker("local", "127.0.0.1") for _ in range(workers)]

    def call(
        self,
        requests: Mapping[int, bytes],
        deadline_s: float,
        interrupted: Callable[[], bool] = never,
        alarm: Callable[[bytes], float] = no_alarm,
    ) -> Replies:
        assert 0 < deadline_s <= limits.GRADIENT_CHECK_S
        self._calls += 1
        if self._calls == self._lost_at:
            return Replies({}, [WorkerLoss(0, "local", 1, Cause.CRASHED, "crashed (SIGSEGV)")])
        return Replies({rank: self._workers[rank].handle(request) for rank, request in requests.items()}, [])

    def settle(self, deadline_s: float, interrupted: Callable[[], bool] = never) -> Replies:
        return Replies({}, [])

    def hire(self, workers: int) -> None:
        pass

    def arrived(self) -> int:
        return 0

    def failed(self) -> Sequence[WorkerLoss]:
        return ()

    def welcome(self) -> None:
        pass

    def keep(self, ranks: Sequence[int]) -> None:
        assert list(ranks) == [0]

    def beat(self) -> None:
        pass

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def test_a_right_job_succeeds_with_its_table_and_no_checkpoint(tmp_path: Path) -> None:
    order = check_order(tmp_path)
    ended, events = run_once(order, tmp_path)
    assert (ended.outcome, ended.last_step) == (agent.RunEnded.SUCCEEDED, 4)
    found = ended.result.gradient_check
    assert [tensor.name for tensor in found.tensors] == TENSORS
    assert 0 < found.worst_relative_error < found.tolerance == 1e-6 and found.rows == 16
    assert all(tensor.float32_deviation < 1e-5 for tensor in found.tensors)
    assert kinds(events)[0] == "started" and len(events[0].started.members) == 1
    last = events[-1].progress.progress
    assert (last.step, last.total_steps, last.workers) == (4, 4, 1)
    assert [path.name for path in (tmp_path / "checkpoints" / order.job_id).iterdir()] == []
    # Another run of it finds the same, bit for bit.
    assert run_once(check_order(tmp_path, run_number=2), tmp_path)[0].result == ended.result


def test_a_wrong_backward_fails_the_job_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = Dense.backward

    def wrong(self: Dense, dy: Array) -> Array:
        dx = backward(self, dy)
        if self.setting.shapes.name == "2.dense":
            assert self.dW_SOI is not None
            self.dW_SOI[:, 2, 5] *= 1.001
        return dx

    monkeypatch.setattr(Dense, "backward", wrong)
    ended, _ = run_once(check_order(tmp_path), tmp_path, make_group=GroupHere)
    assert ended.outcome == agent.RunEnded.FAILED
    row = next(tensor for tensor in ended.result.gradient_check.tensors if tensor.name == "2.dense.weight")
    assert list(row.worst_index) == [5, 2]
    assert "2.dense.weight at [5, 2] is wrong" in ended.reason
    assert f"{row.backward:.10g}" in ended.reason and f"{row.numerical:.10g}" in ended.reason


def test_a_lost_worker_loses_the_run_and_a_new_one_begins_again(tmp_path: Path) -> None:
    ended, events = run_once(check_order(tmp_path), tmp_path, make_group=lambda: GroupHere(lost_at=6))
    assert (ended.outcome, ended.cause, ended.last_step) == (agent.RunEnded.LOST, agent.RunEnded.OWN, 1)
    assert "while checking the gradient of tensor 1" in ended.reason and not ended.HasField("result")
    assert events[-1].notice.reason == "WORKER_LOST"
    again, _ = run_once(check_order(tmp_path, run_number=2), tmp_path, make_group=GroupHere)
    assert len(again.result.gradient_check.tensors) == 4


def test_a_worker_killed_from_outside_is_said(tmp_path: Path) -> None:
    group = LocalGroup()
    wanted = Wanted()

    def kill() -> bool:
        if group.size:
            os.kill(group.pids()[0], signal.SIGKILL)
        return False

    wanted.cancelled = kill  # type: ignore[method-assign]
    ended, _ = run_once(check_order(tmp_path), tmp_path, wanted, make_group=lambda: group)
    assert (ended.outcome, ended.cause) == (agent.RunEnded.LOST, agent.RunEnded.OUTSIDE)
    assert "SIGKILL" in ended.reason


def test_cancel_and_pause_come_between_tensors(tmp_path: Path) -> None:
    wanted = Wanted()
    wanted.cancel = True
    ended, _ = run_once(check_order(tmp_path), tmp_path, wanted, make_group=GroupHere)
    assert (ended.outcome, ended.reason) == (agent.RunEnded.CANCELLED, "cancelled after 0 of 4 tensors")
    wanted = Wanted()
    asked = iter([False, False])
    wanted.paused = lambda: next(asked, True)  # type: ignore[method-assign]
    ended, _ = run_once(check_order(tmp_path, run_number=2), tmp_path, wanted, make_group=GroupHere)
    assert (ended.outcome, ended.last_step) == (agent.RunEnded.PAUSED, 2)
    assert "begins again" in ended.reason and not ended.HasField("result")


def test_a_group_that_cannot_start_loses_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: GroupHere, *arguments: object) -> None:
        raise GroupStartFailed("no place for 1 worker", outside=True)

    monkeypatch.setattr(GroupHere, "start", fail)
    ended, _ = run_once(check_order(tmp_path), tmp_path, make_group=GroupHere)
    assert (ended.outcome, ended.cause) == (agent.RunEnded.LOST, agent.RunEnded.OUTSIDE)


def table(*errors: float, deviation: float = 1e-7, backward: float = 1.0) -> job.GradientCheckResult:
    """A table of tensors with these errors."""
    tensors = [
        job.TensorGradientCheck(
            name=f"{number}.dense.weight",
            worst_relative_error=error,
            worst_index=[number, 7],
            backward=backward,
            numerical=2.0,
            float32_deviation=deviation,
        )
        for number, error in enumerate(errors)
    ]
    return job.GradientCheckResult(tensors=tensors, tolerance=1e-6, float32_tolerance=1e-2)


def test_the_verdict_names_the_worst() -> None:
    assert verdict(table()) == verdict(table(0.0, 9.9e-7)) == ""
    assert verdict(table(1e-6)).startswith("the gradient of 0.dense.weight at [0, 7] is wrong: backward gives 1,")
    said = verdict(table(0.1, 0.5, 0.0))
    assert "1.dense.weight at [1, 7]" in said and "1 more of 3 tensors" in said
    said = verdict(table(0.1, math.nan, backward=math.inf))
    assert "1.dense.weight" in said and "not finite" in said and "standardize" in said
    said = verdict(table(0.0, deviation=0.5))
    assert "float32" in said and "0.dense.weight" in said and "0.5 of their size; it must be below 0.01" in said
    assert "float32" in verdict(table(0.0, deviation=math.nan))


def test_the_worst_error_of_all() -> None:
    assert worst_error(table()) == 0.0
    assert worst_error(table(0.1, 0.5, 0.0)) == 0.5
    assert math.isnan(worst_error(table(0.1, math.nan, 0.5)))
