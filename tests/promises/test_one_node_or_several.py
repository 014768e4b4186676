"""The same job gives one hash on one Ray node or several, whatever is killed or lost meanwhile, and nothing is left."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from lockstep.v1.training_job_pb2 import TrainingJob

from .nodes import Nodes
from .runs import JOB_S, Run, gone, job_of, kill_agent, kill_head, look, nothing_is_left, pids

STOPPED_S = 3.0

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


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
    held = Counter(home for group in look(nodes)[0] for home in group["bundles_to_node_id"].values() if home)
    assert held and not held - Counter(member.node for member in second)
    run.goes_on()
    os.kill(second[3].pid, signal.SIGSTOP)
    stopped = time.monotonic()
    run.group("it goes on without it", lambda group: second[3].pid not in pids(group))
    print(f"stopped to going on: {time.monotonic() - stopped:.1f} s")
    ended = run.ends_like(alone)
    assert len(ended.runs) == 1
    assert f"worker 4 (node {first[4].node[:12]}, pid {first[4].pid})" in run.told("WORKER_LOST")[0]
    assert f"worker 3 (node {second[3].node[:12]})" in run.told("WORKER_FAILED")[-1]


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
    kills = (230, 430, 630)
    for step in kills:
        run.at(step)
        kill_agent(nodes)
    ended = run.ends_like(alone)
    assert [run.run_number for run in ended.runs] == [1, 2, 3, 4, 5]
    starts = [run.start_step for run in ended.runs]
    assert all(start % 100 == 0 for start in starts)
    # From a checkpoint, every 100 steps; that of the last moment may not have been written.
    assert all(start >= step // 100 * 100 - 100 for start, step in zip(starts[2:], kills, strict=True)), starts
    nothing_is_left(nodes)


def test_the_agent_is_stopped_for_a_moment(nodes: Nodes, alone: TrainingJob) -> None:
    run = Run(nodes, job_of(2))
    run.at(130)
    agent = nodes.agent()
    os.kill(agent, signal.SIGSTOP)
    time.sleep(STOPPED_S)
    os.kill(agent, signal.SIGCONT)
    ended = run.ends_like(alone)
    assert len(ended.runs) == 1 and not ended.progress.replayed_rows


def test_the_head_is_killed(nodes: Nodes, alone: TrainingJob) -> None:
    run = Run(nodes, job_of(5, least=1))
    run.at(130)
    kill_head(nodes, run)
    ended = run.ends_like(alone)
    assert len(ended.runs) >= 2 and ended.runs[-1].start_step >= 100
    nodes.wait_until_ready()
    nothing_is_left(nodes)
