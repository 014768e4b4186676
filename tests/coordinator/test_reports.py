"""What a run says: progress once in a while, and never later than a checkpoint or the end that lies behind it."""

from __future__ import annotations

import time
from pathlib import Path

from coordinator.reports import Reports
from coordinator.spool import SpoolWriter, read_events, spool_path
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import training_job_pb2 as job

RUN = agent.RunKey(job_id="a-b", run_number=1)


def words(event: agent.RunEvent) -> tuple[str, int]:
    steps = {"progress": event.progress.progress.step, "checkpoint": event.checkpoint.step, "ended": event.ended.last_step}
    kind = event.WhichOneof("event") or ""
    return kind, steps[kind]


def test_progress_held_back_comes_before_a_checkpoint_and_before_the_end(tmp_path: Path) -> None:
    times = [0.0]
    path = spool_path(tmp_path, RUN.job_id, RUN.run_number)
    spool = SpoolWriter(path, RUN, time.time_ns)
    reports = Reports(spool, lambda: times[0])
    for step in (1, 2, 3):
        reports.progress(job.Progress(step=step), [step])
    reports.checkpoint(job.Checkpoint(step=3))
    reports.progress(job.Progress(step=4), [4])
    times[0] = 5.0
    reports.progress(job.Progress(step=5), [5])
    reports.progress(job.Progress(step=6), [6])
    reports.ended(agent.RunEnded(last_step=6))
    spool.close()
    said = [words(event) for event, _ in read_events(path)]
    assert said == [("progress", 1), ("progress", 3), ("checkpoint", 3), ("progress", 5), ("progress", 6), ("ended", 6)]
