"""One run of the loop inside the test's process, with workers that are plain processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from coordinator.gradient_check import GradientCheckRun
from coordinator.group.group import WorkerGroup
from coordinator.group.local import LocalGroup
from coordinator.replay import Replay
from coordinator.reports import Reports
from coordinator.spool import SpoolWriter, read_events, spool_path
from coordinator.training import Training
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import training_job_pb2 as job


class Wanted:
    """What is wanted, as a test sets it."""

    def __init__(self) -> None:
        self.cancel = False
        self.pause = False
        self.count = 0  # of workers; 0: as ordered
        self.minimum = 0  # of workers; 0: as ordered
        self.waits = 0
        self.on_wait: Callable[[], None] = lambda: None

    def cancelled(self) -> bool:
        return self.cancel

    def paused(self) -> bool:
        return self.pause

    def workers(self) -> int:
        return self.count

    def least(self) -> int:
        return self.minimum

    def wait(self, timeout_s: float) -> None:
        self.waits += 1
        self.on_wait()
        time.sleep(min(timeout_s, 0.02))


def run_once(
    order: agent.RunOrder,
    files_folder: Path,
    wanted: Wanted | None = None,
    environments: Mapping[int, Mapping[str, str]] | None = None,
    make_group: Callable[[], WorkerGroup] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[agent.RunEnded, list[agent.RunEvent]]:
    """Runs an order to its end; gives the end and the events that were spooled before it."""
    (files_folder / "checkpoints" / order.job_id).mkdir(parents=True, exist_ok=True)
    path = spool_path(files_folder, order.job_id, order.run_number)
    key = agent.RunKey(job_id=order.job_id, run_number=order.run_number)
    spool = SpoolWriter(path, key, time.time_ns)
    try:
        wanted = wanted or Wanted()
        wanted.count = wanted.count or order.workers
        wanted.minimum = wanted.minimum or order.spec.workers.min
        make_group = make_group or (lambda: LocalGroup(environments=environments))
        if order.kind == job.TrainingJob.GRADIENT_CHECK:
            ended = GradientCheckRun(order, files_folder, Reports(spool), wanted, make_group).run()
        else:
            kind = Replay if order.kind == job.TrainingJob.VERIFY else Training
            ended = kind(order, files_folder, Reports(spool), wanted, make_group, clock).run()
    finally:
        spool.close()
    return ended, [event for event, _ in read_events(path)]


def kinds(events: list[agent.RunEvent]) -> list[str]:
    """The kinds of events, in order."""
    return [event.WhichOneof("event") or "" for event in events]


def curve(events: list[agent.RunEvent]) -> dict[tuple[int, str], float]:
    """All points, each of which may come once."""
    points = [(event.points.step, point.name, point.value) for event in events for point in event.points.points]
    assert len({point[:2] for point in points}) == len(points)
    return {(step, name): value for step, name, value in points}
