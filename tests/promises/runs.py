"""A job of all that could depend on how work is split, followed on several Ray nodes through what is done to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lockstep.spec import read
from lockstep.v1.job_spec_pb2 import JobSpec, Workers
from lockstep.v1.training_job_pb2 import TrainingJob, WorkerInfo

from .nodes import Nodes
from .service import Service, wait_until

JOB = Path(__file__).parent / "everything.yaml"
STEPS = 900
JOB_S = 200
FEW_S = 90
# What is alive in Ray besides this driver: placement groups, actors of drivers that have ended, and CPUs that are held.
# Into a file, since Ray prints its own remarks to a driver's stdout at any time.
LOOK = """
import json, pathlib, sys, ray
from ray._private import state
from ray.util import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
over = {job["JobID"] for job in state.jobs() if job["IsDead"]}
groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
actors = [actor for actor in state.actors().values() if actor["State"] != "DEAD" and actor["JobID"] in over]
held = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
pathlib.Path(sys.argv[2]).write_text(json.dumps([groups, actors, [held] if held else []]))
"""


def job_of(workers: int, least: int = 0) -> JobSpec:
    """The job for so many workers."""
    spec = JobSpec()
    spec.CopyFrom(read(JOB).spec)
    spec.workers.CopyFrom(Workers(min=least or workers, max=workers))
    return spec


class Run:
    """A job under way."""

    def __init__(self, service: Service, spec: JobSpec) -> None:
        self.service, self.began = service, time.monotonic()
        with service.client() as client:
            self.name = client.submit(spec).name

    def at(self, step: int) -> list[WorkerInfo]:
        """Its workers, once it has come to a step."""
        self.service.wait_for_step(self.name, step, JOB_S)
        return self.members()

    def members(self) -> list[WorkerInfo]:
        """The workers of its last group."""
        return list(self.get().runs[-1].members)

    def get(self) -> TrainingJob:
        """The job."""
        with self.service.client() as client:
            return client.get(self.name)

    def goes_on(self) -> None:
        """Waits until it has come further."""
        now = self.get().progress.step
        self.waits("it goes on", lambda: self.get().progress.step > now)

    def waits(self, what: str, holds: Callable[[], bool]) -> None:
        """Waits, as long as the job is not over."""
        wait_until(f"{self.name}: {what}", holds, FEW_S)

    def group(self, what: str, fits: Callable[[list[WorkerInfo]], bool]) -> list[WorkerInfo]:
        """Waits for a group of this kind, and gives it."""
        found: list[WorkerInfo] = []

        def seen() -> bool:
            found[:] = self.members()
            return fits(found)

        self.waits(what, seen)
        return found

    def told(self, word: str) -> list[str]:
        """What was noticed under a word."""
        return [event.notice.text for event in self.service.events(self.name) if event.notice.reason == word]

    def ends_like(self, alone: TrainingJob) -> TrainingJob:
        """The end: weights, curves and counts are those of the job undisturbed, and nothing is left of its runs."""
        ended = self.service.finished(self.name, JOB_S)
        print(f"{self.name}: {time.monotonic() - self.began:.1f} s, {len(ended.runs)} runs", file=sys.stderr)
        assert ended.result.weights_sha256 == alone.result.weights_sha256
        assert ended.result.validation_metrics == alone.result.validation_metrics
        assert ended.progress.applied_rows == alone.progress.applied_rows
        assert sum(run.computed_rows for run in ended.runs) == ended.progress.applied_rows + ended.progress.replayed_rows
        curve = self.service.curve(self.name)
        assert curve == self.service.curve(alone.name)
        assert [step for step, name, _ in curve if name == "validation_loss"] == list(range(50, STEPS + 1, 50))
        for run in ended.runs:
            wait_until("its workers are gone", lambda run=run: all(gone(member.pid) for member in run.members), FEW_S)  # type: ignore[misc]
        files = self.service.data / "files"
        assert not [path for path in files.rglob("*") if path.suffix in (".tmp", ".old") or ".bad-" in path.name]
        return ended


def pids(group: list[WorkerInfo]) -> set[int]:
    """The processes of workers; each on its node, but all on this machine."""
    return {member.pid for member in group}


def gone(pid: int) -> bool:
    """Whether there is no such worker any more."""
    try:
        return b"ray::" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def look(nodes: Nodes) -> list[list[Any]]:
    """The placement groups in Ray, the actors without their driver, and the CPUs that are held."""
    environment = {**nodes.environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(nodes.ray_token)}
    with tempfile.NamedTemporaryFile() as seen:
        command = [sys.executable, "-c", LOOK, nodes.ray_address, seen.name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        found: list[list[Any]] = json.load(seen)
    return found


def nothing_is_left(nodes: Nodes) -> None:
    """No placement group, no actor without its driver, no CPU that is held."""
    left: list[list[Any]] = []

    def none() -> bool:
        left[:] = look(nodes)
        return left == [[], [], []]

    try:
        wait_until("nothing is left in Ray", none, FEW_S, 1.0)
    except AssertionError as error:
        raise AssertionError(f"left in Ray: {left}") from error


def kill_agent(nodes: Nodes) -> None:
    """SIGKILL for the agent; its coordinators die with it."""
    os.kill(nodes.agent(), signal.SIGKILL)


def kill_head(nodes: Nodes, run: Run) -> None:
    """SIGKILL for the Ray head; once the run is over, its nodes are started anew."""
    os.kill(nodes.ray_head(), signal.SIGKILL)
    run.waits("that run is over", lambda: run.get().state != TrainingJob.RUNNING)
    for node, slots in list(nodes.workers.items()):  # as a supervisor would: by themselves they notice it after a minute
        nodes.lose(node)
        nodes.add_node(slots)
