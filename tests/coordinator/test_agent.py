"""The agent: it starts what is wished, carries events in order, and loses nothing when either side goes away."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.internal.v1 import agent_service_pb2 as agent
from tests.coordinator.agent_process import AgentProcess
from tests.coordinator.api_server import ApiServer
from tests.coordinator.small_job import make_order

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    server = ApiServer()
    server.start()
    yield server
    server.stop()
    assert not server.violations


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def running(server: ApiServer, files: Path) -> Iterator[AgentProcess]:
    process = AgentProcess(server.port, files)
    yield process
    process.stop()


def coordinator_of(server: ApiServer, files: Path, key: tuple[str, int]) -> int:
    """The process that writes a run's spool."""
    spool = files / "spool" / f"{key[0]}-{key[1]}.events"
    inode = spool.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
            return int(words[4])
    raise AssertionError(f"nobody writes {spool}")


def progressed(server: ApiServer, key: tuple[str, int]) -> bool:
    """Whether a run has taken steps."""
    return any(event.WhichOneof("event") == "progress" for event in server.events.get(key, []))


def test_a_wished_run_ends_with_its_result_and_its_spool_is_removed(
    server: ApiServer, files: Path, running: AgentProcess
) -> None:
    server.wait(lambda: server.capacity.nodes)
    assert server.capacity.nodes[0].slots == 2 and not server.capacity.problems
    key = server.wish(make_order(files, workers=2))
    ended = server.wait(lambda: server.ended(key))
    assert ended.outcome == agent.RunEnded.SUCCEEDED and len(ended.result.weights_sha256) == 64
    assert [event.sequence for event in server.events[key]] == list(range(1, len(server.events[key]) + 1))
    server.wait(lambda: not list((files / "spool").iterdir()))
    assert server.hellos[0].version and server.hellos[0].agent_id
    server.remove(key[0])
    server.wait(lambda: not (files / "checkpoints" / key[0]).exists())


def test_a_killed_coordinator_becomes_lost_and_the_next_run_goes_on_from_the_checkpoint(
    server: ApiServer, files: Path, running: AgentProcess
) -> None:
    order = make_order(files, epochs=100_000, checkpoint_steps=50)
    key = server.wish(order)
    server.wait(lambda: any(event.WhichOneof("event") == "checkpoint" for event in server.events.get(key, [])))
    os.kill(coordinator_of(server, files, key), signal.SIGKILL)
    ended = server.wait(lambda: server.ended(key))
    assert ended.outcome == agent.RunEnded.LOST and "SIGKILL" in ended.reason
    order.run_number, order.furthest_step = 2, ended.last_step
    second = server.wish(order)
    server.wait(lambda: progressed(server, second))
    started = next(event.started for event in server.events[second] if event.WhichOneof("event") == "started")
    assert started.start_step > 0 and started.start_step % 50 == 0
    server.wish(order, agent.RunWish.CANCEL)
    assert server.wait(lambda: server.ended(second)).outcome == agent.RunEnded.CANCELLED


def test_pause_commits_a_checkpoint_and_ends(server: ApiServer, files: Path, running: AgentProcess) -> None:
    order = make_order(files, epochs=100_000, evaluation_steps=1_000)
    key = server.wish(order)
    server.wait(lambda: progressed(server, key))
    server.wish(order, agent.RunWish.PAUSE)
    ended = server.wait(lambda: server.ended(key))
    assert ended.outcome == agent.RunEnded.PAUSED
    assert ended.result.step == ended.last_step > 0


def test_a_run_that_is_not_wished_is_killed(server: ApiServer, files: Path, running: AgentProcess) -> None:
    key = server.wish(make_order(files, epochs=100_000))
    server.wait(lambda: progressed(server, key))
    server.forget(key)
    ended = server.wait(lambda: server.ended(key))
    assert ended.outcome == agent.RunEnded.LOST and "not wished" in ended.reason


def test_runs_go_on_while_the_server_is_away(server: ApiServer, files: Path, running: AgentProcess) -> None:
    key = server.wish(make_order(files, epochs=2_000))
    server.wait(lambda: progressed(server, key))
    server.stop()
    seen = len(server.events[key])
    server.start()
    ended = server.wait(lambda: server.ended(key), 30)
    assert ended.outcome == agent.RunEnded.SUCCEEDED
    assert len(server.hellos) >= 2 and len(server.events[key]) > seen


def test_a_killed_agent_ends_its_runs_and_the_next_one_says_so(server: ApiServer, files: Path) -> None:
    first = AgentProcess(server.port, files)
    key = server.wish(make_order(files, epochs=100_000))
    server.wait(lambda: progressed(server, key))
    first.kill()
    second = AgentProcess(server.port, files)
    try:
        ended = server.wait(lambda: server.ended(key))
    finally:
        code = second.stop()
    assert ended.outcome == agent.RunEnded.LOST and "agent" in ended.reason
    assert ended.last_step > 0 and code == 0


def test_a_refused_agent_ends_with_its_own_code(server: ApiServer, files: Path) -> None:
    server.refusal = "another agent is connected; stop it, or start this one with --take-over"
    process = AgentProcess(server.port, files)
    try:
        assert process.process.wait(20) == 3
    finally:
        process.stop()
    assert server.refusal in (files.parent / "agent.log").read_text()


def test_a_wrong_token_is_said_and_tried_again(server: ApiServer, files: Path) -> None:
    process = AgentProcess(server.port, files, token="another")
    log = files.parent / "agent.log"
    server.wait(lambda: log.read_text().count("UNAUTHENTICATED") >= 2)
    assert process.stop() == 0
    assert "another" not in log.read_text()


def test_arguments_are_checked() -> None:
    from coordinator.agent import arguments_of

    with pytest.raises(SystemExit):
        arguments_of(["--server", "h:1", "--token-file", "t", "--files", "f"])


def test_the_agent_imports_neither_ray_nor_numpy() -> None:
    code = "import sys, coordinator.agent; print([n for n in ('ray', 'numpy') if n in sys.modules])"
    import sys

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
