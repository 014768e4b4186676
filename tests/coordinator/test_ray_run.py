"""The agent and its coordinators on a real Ray: the same weights as plain processes give, deaths named, nothing left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.group.group import PORTABLE_WORKER
from coordinator.group.local import LocalGroup
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import job_spec_pb2
from tests.coordinator.api_server import ApiServer
from tests.coordinator.on_ray import server_on_ray
from tests.coordinator.one_run import run_once
from tests.coordinator.small_job import make_order

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray") / "files"


@pytest.fixture(scope="module")
def server(files: Path) -> Iterator[ApiServer]:
    """A server whose agent is connected to a Ray with two slots."""
    with server_on_ray(files, cpus=2) as server:
        yield server


def started(server: ApiServer, key: tuple[str, int]) -> agent.RunStarted:
    """The workers of a run, once they joined."""
    events = server.wait(lambda: [e for e in server.events.get(key, []) if e.WhichOneof("event") == "started"], 40)
    return agent.RunStarted.FromString(events[0].started.SerializeToString())


def test_ray_workers_give_the_weights_that_plain_processes_give(server: ApiServer, files: Path) -> None:
    assert [node.slots for node in server.capacity.nodes] == [2] and not server.capacity.problems
    began = time.monotonic()
    key = server.wish(make_order(files, workers=2, job_id="ray-0001"))
    members = started(server, key).members
    print(f"wish to workers joined: {time.monotonic() - began:.2f} s")
    assert len({member.pid for member in members}) == 2
    ended = server.wait(lambda: server.ended(key), 40)
    assert ended.outcome == agent.RunEnded.SUCCEEDED, ended.reason
    there, _ = run_once(make_order(files, workers=1, job_id="local-0001"), files)
    assert ended.result.weights_sha256 == there.result.weights_sha256
    assert sum(ended.computed_rows) == sum(there.computed_rows)


def test_a_portable_job_has_workers_with_the_shared_kernels(server: ApiServer, files: Path) -> None:
    order = make_order(files, workers=2, job_id="ray-0005")
    order.spec.training.arithmetic = job_spec_pb2.PORTABLE
    key = server.wish(order)
    ended = server.wait(lambda: server.ended(key), 40)
    assert ended.outcome == agent.RunEnded.SUCCEEDED, ended.reason
    there, _ = run_once(make_order(files, job_id="local-0005"), files, make_group=lambda: LocalGroup(PORTABLE_WORKER))
    assert ended.result.weights_sha256 == there.result.weights_sha256
    assert ended.result.fingerprint == there.result.fingerprint


def test_a_killed_worker_is_replaced_within_the_run_and_the_weights_are_those_of_one_undisturbed(
    server: ApiServer, files: Path
) -> None:
    order = make_order(files, epochs=100_000, workers=2, evaluation_steps=100_000, job_id="ray-0002")
    key = server.wish(order)
    members = started(server, key).members
    server.wait(lambda: any(e.WhichOneof("event") == "progress" for e in server.events[key]), 40)
    killed = time.monotonic()
    os.kill(members[1].pid, signal.SIGKILL)

    def groups() -> list[agent.RunStarted]:
        return [e.started for e in server.events[key] if e.WhichOneof("event") == "started"]

    server.wait(lambda: len(groups()) >= 2, 40)
    print(f"kill to stepping again: {time.monotonic() - killed:.2f} s")
    server.wait(lambda: len(groups()) >= 3, 40)
    print(f"kill to the replacement's first group: {time.monotonic() - killed:.2f} s")
    assert [member.pid for member in groups()[1].members] == [members[0].pid]
    assert len(groups()[2].members) == 2 and members[0].pid in {member.pid for member in groups()[2].members}
    (said,) = [e.notice.text for e in server.events[key] if e.notice.reason == "WORKER_LOST"]
    assert "worker 1" in said and "with 1 of 2 workers" in said
    server.wish(order, agent.RunWish.PAUSE)
    ended = server.wait(lambda: server.ended(key), 40)
    assert ended.outcome == agent.RunEnded.PAUSED and ended.last_step == ended.result.step, ended.reason
    there = make_order(files, epochs=100_000, evaluation_steps=100_000, job_id="local-0002")
    there.plan.total_steps = ended.last_step
    undisturbed, _ = run_once(there, files)
    assert undisturbed.result.weights_sha256 == ended.result.weights_sha256


def test_the_number_of_workers_follows_what_is_wished(server: ApiServer, files: Path) -> None:
    order = make_order(files, epochs=100_000, workers=2, job_id="ray-0004")
    order.workers = 1
    key = server.wish(order)
    started(server, key)

    def sizes() -> list[int]:
        return [len(e.started.members) for e in server.events[key] if e.WhichOneof("event") == "started"]

    for wanted, expected in ((2, [1, 2]), (1, [1, 2, 1])):
        order.workers = wanted
        server.wish(order)
        server.wait(lambda expected=expected: sizes() == expected, 40)  # type: ignore[misc]
    server.wish(order, agent.RunWish.CANCEL)
    assert server.wait(lambda: server.ended(key), 40).outcome == agent.RunEnded.CANCELLED


def test_a_killed_coordinator_takes_its_actors_with_it(server: ApiServer, files: Path) -> None:
    order = make_order(files, epochs=100_000, workers=2, job_id="ray-0003")
    key = server.wish(order)
    pids = [member.pid for member in started(server, key).members]
    spool = files / "spool" / f"{order.job_id}-1.events"
    inode = spool.stat().st_ino
    writer = next(
        int(line.split()[4]) for line in Path("/proc/locks").read_text().splitlines() if line.split()[5].endswith(f":{inode}")
    )
    os.kill(writer, signal.SIGKILL)
    ended = server.wait(lambda: server.ended(key), 40)
    assert ended.outcome == agent.RunEnded.LOST and "SIGKILL" in ended.reason
    server.wait(lambda: not any(b"_Actor" in _command(pid) or b"ray::" in _command(pid) for pid in pids), 40)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
