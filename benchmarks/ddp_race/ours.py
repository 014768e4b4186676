"""Our side: jobs that are submitted to a running service, and how fast their steps were applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from benchmarks.ddp_race.cases import DdpCase
from benchmarks.engine_race.ours import job, made_rows, write_start
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import JobEvent, TrainingJob
from tests.promises.service import Service

JOB_S = 3600.0
SURPLUS = 1.1  # epochs beyond those that the expected speed would take: a turn is rather too long


def applied_seconds(events: Iterable[JobEvent]) -> float:
    """From when the job's group was formed, before its first step, to the report of its last step, by the server's clock."""
    began = ended = 0
    for event in events:
        if event.HasField("state_change") and event.state_change.state == TrainingJob.RUNNING and not began:
            began = event.time.ToNanoseconds()
        if event.HasField("progress") and event.progress.step == event.progress.total_steps:
            ended = event.time.ToNanoseconds()
    if not began < ended:
        raise ValueError("the job has no event of its start, or none of its last step")
    return (ended - began) / 1e9


def losses(events: Iterable[JobEvent]) -> dict[int, float]:
    """The curve of the loss, by step."""
    return {
        event.points.step: point.value
        for event in events
        if event.HasField("points")
        for point in event.points.points
        if point.name == "loss"
    }


@final
@dataclass(frozen=True)
class Ran:
    """A job that ended: its rows, all steps' wall clock, its weights and its curve."""

    rows: int
    seconds: float
    weights_sha256: str
    losses: dict[int, float]

    @property
    def samples_per_s(self) -> float:
        """Rows of applied steps per second."""
        return self.rows / self.seconds


@final
class Jobs:
    """Runs jobs of one case on a service, one at a time. What a job does not say about speed is at its default."""

    def __init__(self, service: Service, folder: Path, case: DdpCase) -> None:
        self._service, self._case = service, case
        self._dataset = f"rows-{case.widths[0]}"
        table = folder / f"{case.widths[0]}.npz"
        if not table.exists():
            x, y = made_rows(case)
            np.savez(table, x=x, y=y)
            with service.client() as client:
                client.push_dataset(table, self._dataset)
        write_start(case, folder)
        self._samples_per_s: dict[tuple[int, int], float] = {}

    def spec(self, shards: int, workers: int, epochs: int) -> JobSpec:
        """The case as a job, of V shards on so many workers."""
        spec = job(self._case, shards)
        spec.name, spec.dataset = "race", f"datasets/{self._dataset}"
        spec.workers.min = spec.workers.max = workers
        spec.training.epochs = epochs
        return spec

    def turn(self, shards: int, workers: int, seconds: float, expected: float) -> Ran:
        """A job of about so many seconds; `expected` samples/s count until one of this kind has run."""
        speed = self._samples_per_s.get((shards, workers), expected)
        ran = self.run(self.spec(shards, workers, max(1, math.ceil(SURPLUS * seconds * speed / self._case.rows))))
        self._samples_per_s[shards, workers] = ran.samples_per_s
        return ran

    def run(self, spec: JobSpec, during: Callable[[str], None] = lambda name: None) -> Ran:
        """Submits a job, calls `during` with its name, awaits its end, takes its events and deletes it."""
        with self._service.client() as client:
            name = client.submit(spec).name
            during(name)
            ended = self._service.finished(name, JOB_S)
            events = self._service.events(name)
            client.delete(name)
        return Ran(ended.progress.applied_rows, applied_seconds(events), ended.result.weights_sha256, losses(events))
