"""The same job gives one hash on one Ray node or several, whatever is killed or lost meanwhile, and nothing is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lockstep.spec import read
from lockstep.v1.job_spec_pb2 import JobSpec, Workers
from lockstep.v1.training_job_pb2 import TrainingJob, WorkerInfo

from .nodes import Nodes
from .service import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

JOB = Path(__file__).parent / "everything.yaml"
STEPS = 900
JOB_S = 200
FEW_S = 90
# What is alive in Ray besides this driver: placement groups, actors of drivers that have ended, and CPUs that are held.
LOOK = """
import json, sys, ray
from ray._private import state
from ray.util import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
over = {job["JobID"] for job in state.jobs() if job["IsDead"]}
groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
actors = [actor for actor in state.actors().values() if actor["State"] != "DEAD" and actor["JobID"] in over]
held = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
print(json.dumps([groups, actors, [held] if held else []]))
"""


def job_of(workers: int, least: int = 0) -> JobSpec:
    """The job for so many workers."""
    spec = JobSpec()
    spec.CopyFrom(read(JOB).spec)
    spec.workers.CopyFrom(Workers(min=least or workers, max=workers))
    return spec


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Slots on three nodes: 2 beside the head, 3 and 3."""
    began = time.monotonic()
    with Nodes(tmp_path_factory.mktemp("nodes"), 2, [3, 3], step_deadline_s=5.0) as running:
        running.push_examples()
        print(f"three nodes: {time.monotonic() - began:.1f} s")
        yield running


@pytest.fixture(scope="module")
def alone(nodes: Nodes) -> TrainingJob:
    """The job on one worker, undisturbed."""
    return nodes.run(job_of(1), JOB_S)


class Run:
    """A job under way."""

    def __init__(self, nodes: Nodes, spec: JobSpec) -> None:
        self.nodes, self.began = nodes, time.monotonic()
        with nodes.client() as client:
            self.name = client.submit(spec).name

    def at(self, step: int) -> list[WorkerInfo]:
        """Its workers, once it has come to a step."""
        self.nodes.wait_for_step(self.name, step, JOB_S)
        return self.members()

    def members(self) -> list[WorkerInfo]:
        """The workers of its last group."""
        return list(self.get().runs[-1].members)

    def get(self) -> TrainingJob:
        """The job."""
        with self.nodes.client() as client:
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
        return [event.notice.text for event in self.nodes.events(self.name) if event.notice.reason == word]

    def ends_like(self, alone: TrainingJob) -> TrainingJob:
        """The end: weights, curves and counts are those of the job undisturbed, and nothing is left of its runs."""
        ended = self.nodes.finished(self.name, JOB_S)
        print(f"{self.name}: {time.monotonic() - self.began:.1f} s, {len(ended.runs)} runs")
        assert ended.result.weights_sha256 == alone.result.weights_sha256
        assert ended.result.validation_metrics == alone.result.validation_metrics
        assert ended.progress.applied_rows == alone.progress.applied_rows
        assert sum(run.computed_rows for run in ended.runs) == ended.progress.applied_rows + ended.progress.replayed_rows
        curve = self.nodes.curve(self.name)
        assert curve == self.nodes.curve(alone.name)
        assert [step for step, name, _ in curve if name == "validation_loss"] == list(range(50, STEPS + 1, 50))
        for run in ended.runs:
            wait_until("its workers are gone", lambda run=run: all(gone(member.pid) for member in run.members), FEW_S)  # type: ignore[misc]
        files = self.nodes.data / "files"
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
    command = [sys.executable, "-c", LOOK, nodes.ray_address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
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


@pytest.mark.parametrize(("workers", "over"), [(2, 1), (3, 1), (5, 2), (8, 3)])
def test_the_weights_are_the_same_on_any_number_of_nodes(nodes: Nodes, alone: TrainingJob, workers: int, over: int) -> None:
    ended = Run(nodes, job_of(workers)).ends_like(alone)
    (run,) = ended.runs
    homes = [member.node for member in run.members]
    assert len(homes) == workers and len(set(homes)) == over
    # Workers of one node are neighbours, and so are their shards.
    assert [rank for rank in range(1, workers) if homes[rank] != homes[rank - 1]] == [
        homes.index(home) for home in dict.fromkeys(homes)
    ][1:]
    assert [member.first_shard for member in run.members[1:]] == [member.end_shard for member in run.members[:-1]]
    assert run.computed_rows == ended.progress.applied_rows and not ended.progress.replayed_rows


def test_a_worker_is_killed_and_another_stopped_on_the_second_node(nodes: Nodes, alone: TrainingJob) -> None:
    run = Run(nodes, job_of(5, least=1))
    first = run.at(60)
    assert first[4].node != first[0].node
    os.kill(first[4].pid, signal.SIGKILL)
    second = run.group("all are there again", lambda group: len(group) == 5 and first[4].pid not in pids(group))
    assert len(pids(second) - pids(first)) == 1
    # Each CPU is held on the very node of its worker, though the nodes have one address.
    held = [home for group in look(nodes)[0] for home in group["bundles_to_node_id"].values()]
    assert Counter(held) == Counter(member.node for member in second)
    run.goes_on()
    os.kill(second[3].pid, signal.SIGSTOP)
    stopped = time.monotonic()
    run.group("it goes on without it", lambda group: second[3].pid not in pids(group))
    print(f"stopped to going on: {time.monotonic() - stopped:.1f} s")
    ended = run.ends_like(alone)
    assert len(ended.runs) == 1
    assert f"worker 4 (node {first[4].node[:12]}, pid {first[4].pid})" in run.told("WORKER_LOST")[0]
    assert f"worker 3 (node {second[3].node})" in run.told("WORKER_FAILED")[-1]


def test_a_node_freezes_and_thaws(nodes: Nodes, alone: TrainingJob) -> None:
    run = Run(nodes, job_of(5, least=1))
    first = run.at(60)
    frozen = next(node for node in nodes.workers if first[4].pid in nodes.below(node))
    asleep = {member.pid for member in first if member.node == first[4].node}
    nodes.freeze(frozen)
    run.group("it goes on without that node", lambda group: not asleep & pids(group))
    nodes.thaw(frozen)
    run.waits("who slept ends", lambda: all(gone(pid) for pid in asleep))
    assert len(run.ends_like(alone).runs) == 1


def test_a_node_is_lost(nodes: Nodes, alone: TrainingJob) -> None:
    run = Run(nodes, job_of(5, least=1))
    first = run.at(60)
    lost = next(node for node in nodes.workers if first[4].pid in nodes.below(node))
    nodes.lose(lost)
    left = run.group("it goes on without that node", lambda group: first[4].node not in {m.node for m in group})
    assert pids(left) & pids(first)
    nodes.add_node(3)
    assert len(run.ends_like(alone).runs) == 1
    nodes.wait_until_ready()
    nothing_is_left(nodes)


def test_api_server_coordinator_and_agent_are_killed(nodes: Nodes, alone: TrainingJob) -> None:
    run = Run(nodes, job_of(5, least=1))
    run.at(60)
    assert nodes.api is not None
    nodes.kill(nodes.api)
    nodes.start_api()
    run.at(130)
    assert len(run.get().runs) == 1
    os.kill(nodes.coordinator(run.name), signal.SIGKILL)
    run.waits("a second run", lambda: len(run.get().runs) == 2)
    run.at(230)
    os.kill(nodes.agent(), signal.SIGKILL)
    ended = run.ends_like(alone)
    assert [run.run_number for run in ended.runs] == [1, 2, 3]
    assert [run.start_step % 100 for run in ended.runs] == [0, 0, 0] and ended.runs[2].start_step >= 200
    nothing_is_left(nodes)


def test_the_head_is_killed(nodes: Nodes, alone: TrainingJob) -> None:
    run = Run(nodes, job_of(5, least=1))
    run.at(130)
    processes = nodes.processes()
    (server,) = [pid for pid, command in processes.items() if re.search(r"gcs_server\b", command.split()[0])]
    os.kill(server, signal.SIGKILL)
    run.waits("that run is over", lambda: run.get().state != TrainingJob.RUNNING)
    for node, slots in list(nodes.workers.items()):  # as a supervisor would: by themselves they notice it after a minute
        nodes.lose(node)
        nodes.add_node(slots)
    ended = run.ends_like(alone)
    assert len(ended.runs) >= 2 and ended.runs[-1].start_step >= 100
    nodes.wait_until_ready()
    nothing_is_left(nodes)
