"""Our side: jobs that are submitted to a running service, and how fast their steps were applied."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import final

import numpy as np

from benchmarks.ddp_race.cases import DdpCase
from benchmarks.engine_race.ours import job, made_rows, write_start
from benchmarks.observed_steps import ObservedSteps
from lockstep import Client
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import JobEvent, TrainingJob
from tests.promises.service import Service

JOB_S = 3600.0
START_S = 60.0
LOOK_S = 0.005
WATCH_S = 0.05  # a look takes time of the cores that are raced
SURPLUS = 1.1  # epochs beyond those that the expected speed would take: a turn is rather too long


def applied_seconds(events: Iterable[JobEvent]) -> float:
    """From when the job's group was formed, before its first step, to the report of its last step, by the server's clock.

    The report stands behind those of a curve's points, of which the server stores some hundreds a second.
    """
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


def samples_per_s(pid: int, total_steps: int, batch: int) -> float:
    """Of a worker's steps from now to the last one. Raises ValueError where there are none to see."""
    steps = ObservedSteps.of(pid)
    if steps is None or (first := steps.count) >= total_steps:
        raise ValueError(f"worker process {pid} had taken all {total_steps} steps before they could be timed; ask for more")
    began = time.monotonic()
    while (count := steps.count) < total_steps:
        if not os.path.exists(f"/proc/{pid}"):
            raise ValueError(f"worker process {pid} ended after {count} of {total_steps} steps")
        time.sleep(WATCH_S)
    return (total_steps - first) * batch / (time.monotonic() - began)


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

    def turn(self, shards: int, workers: int, seconds: float, expected: float) -> float:
        """Samples/s of a job of at least so many seconds; `expected` count until one of this kind has run.

        A shorter job is slower, for its first seconds count more: one that was too short is run again.
        """
        speed = self._samples_per_s.get((shards, workers), expected)
        while True:
            epochs = max(1, math.ceil(SURPLUS * seconds * speed / self._case.rows))
            speed, _ = self.timed(self.spec(shards, workers, epochs))
            self._samples_per_s[shards, workers] = speed
            if epochs * self._case.rows >= seconds * speed:
                return speed

    def timed(self, spec: JobSpec) -> tuple[float, list[JobEvent]]:
        """Samples/s of a job from its first steps to its last, seen from outside, and its events."""
        speeds: list[float] = []
        _, events = self.run(spec, lambda client, job: speeds.append(self._watch_steps(client, job)))
        return speeds[0], events

    def _watch_steps(self, client: Client, job: TrainingJob) -> float:
        began = time.monotonic()
        while not (job.runs and job.runs[-1].members):
            if time.monotonic() > began + START_S:
                raise TimeoutError(f"{job.name} has no workers after {START_S:g} s: {job.status_detail}")
            time.sleep(LOOK_S)
            job = client.get(job.name)
        return samples_per_s(job.runs[-1].members[0].pid, job.plan.total_steps, self._case.batch)

    def run(
        self, spec: JobSpec, during: Callable[[Client, TrainingJob], None] = lambda client, job: None
    ) -> tuple[TrainingJob, list[JobEvent]]:
        """Submits a job, calls `during` with it, awaits its success and deletes it; gives the job and its events."""
        with self._service.client() as client:
            job = client.submit(spec)
            during(client, job)
            ended = self._service.finished(job.name, JOB_S)
            events = self._service.events(job.name)
            client.delete(job.name)
        return ended, events
