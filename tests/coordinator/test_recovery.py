"""A run mends its group: whoever is lost, wherever, the weights, the curves and the counts are those of a run undisturbed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from coordinator import limits, members
from coordinator.group.local import LocalGroup
from lockstep.internal.v1 import agent_service_pb2 as agent
from tests.coordinator.one_run import Wanted, curve, kinds, run_once
from tests.coordinator.small_job import make_order
from tests.coordinator.test_group import gone
from worker.state_transfer import TransferError

pytestmark = pytest.mark.timeout(60)

FAULTY = "tests.coordinator.faulty:FaultyWorker"
EPOCHS = 4
STEPS = 12


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[agent.RunEnded, list[agent.RunEvent]]:
    """The job on one worker, from start to end."""
    files = tmp_path_factory.mktemp("undisturbed")
    return run_once(make_order(files, epochs=EPOCHS), files)


class Crash:
    """A run whose workers come to harm, by the order of their start; and what it left."""

    def __init__(
        self,
        files: Path,
        faults: Mapping[int, str],
        workers: int = 3,
        wanted: Wanted | None = None,
        order: agent.RunOrder | None = None,
    ) -> None:
        self.order = order or make_order(files, epochs=EPOCHS, workers=workers)
        self.group = LocalGroup(FAULTY, {number: {"LOCKSTEP_FAULT": fault} for number, fault in faults.items()})
        self.pids: set[int] = set()
        self.wanted = wanted or Wanted()
        descriptors, shared = len(os.listdir("/proc/self/fd")), os.listdir("/dev/shm")
        real = self.group.call

        def call(*arguments: object, **named: object) -> object:
            self.pids |= set(self.group.pids())
            return real(*arguments, **named)  # type: ignore[arg-type]

        self.group.call = call  # type: ignore[assignment, method-assign]
        self.ended, self.events = run_once(self.order, files, self.wanted, make_group=lambda: self.group)
        assert all(gone(pid) for pid in self.pids)
        assert len(os.listdir("/proc/self/fd")) == descriptors and os.listdir("/dev/shm") == shared
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
@pytest.mark.parametrize("point", ["forward:5", "backward:5", "reduce:5", "snapshot:2", "evaluate:2", "stretch:3"])
def test_a_worker_killed_anywhere_changes_nothing(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]], point: str, victim: int
) -> None:
    run = Crash(tmp_path, {victim: f"{point}:SIGKILL"})
    run.is_like(undisturbed)
    (said,) = run.told("WORKER_LOST")
    assert f"worker {victim} (node local, pid " in said and "SIGKILL" in said and "with 2 of 3 workers" in said
    assert kinds(run.events).count("recovering") == 1 and run.groups[:2] == [3, 2]
    assert run.replayed_rows in ((64, 32) if point.endswith("e:5") or point.endswith("d:5") else (0, 32, 64))
    first, second = [event.started for event in run.events if event.WhichOneof("event") == "started"][:2]
    survivors = [member.pid for rank, member in enumerate(first.members) if rank != victim]
    assert [member.pid for member in second.members] == survivors
