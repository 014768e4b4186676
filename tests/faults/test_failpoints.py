"""Failpoints do what they say, only where they are allowed; the list of names, the source, the matrix and the docs agree."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coordinator.group.local import LocalGroup
from lockstep.contract.errors import UserError
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import worker_pb2
from tests.coordinator.one_run import run_once
from tests.faults.fault_job import fault_order
from tests.faults.rows import ROWS, places_of
from worker import failpoints
from worker.failpoints import ALLOW, COORDINATOR, NAMES, WORKER, FailpointRaised, failpoint, halfway
from worker.shard_worker import ShardWorker

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parent.parent.parent
POINT = "run1/rank2/reduce.after_post=raise@3"


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process heeds points."""
    monkeypatch.setenv(ALLOW, "1")


def test_a_point_acts_at_its_passing_and_once(allowed: None, capfd: pytest.CaptureFixture[str]) -> None:
    failpoints.arm([POINT])
    failpoint("reduce.after_post", 1)
    failpoint("update.when_done", 1)
    failpoint("reduce.after_post", 2)
    with pytest.raises(FailpointRaised, match=r"reduce\.after_post"):
        failpoint("reduce.after_post", 3)
    failpoint("reduce.after_post", 4)
    failpoints.arm(["run1/rank2/reduce.after_post=raise:KeyError@1"])
    said = json.loads(capfd.readouterr().err)
    assert said == {"event": "failpoint", "point": POINT, "pid": os.getpid(), "step": 3}
    with pytest.raises(KeyError, match="made by a failpoint"):
        failpoint("reduce.after_post", 5)


def test_half_of_the_items_are_done_when_a_point_acts(allowed: None) -> None:
    items = [1, 2, 3, 4, 5]
    assert halfway("update.when_half_done", items) is items
    failpoints.arm(["run1/rank0/update.when_half_done=raise@2"])
    assert list(halfway("update.when_half_done", items)) == items
    done = []
    with pytest.raises(FailpointRaised):
        for item in halfway("update.when_half_done", items):
            done.append(item)
    assert done == [1, 2, 3]


def test_one_bit_of_memory_or_of_a_file_is_flipped(allowed: None, tmp_path: Path) -> None:
    vector = np.ones(10, np.float32)
    failpoints.arm(["run1/rank0/stretch.when_done=corrupt@1", "run1/rank0/stretch.when_done=corrupt:file,0@2"])
    failpoint("stretch.when_done", 1, vector)
    changed = np.flatnonzero(vector != 1)
    assert changed.tolist() == [5] and vector[5] == np.nextafter(np.float32(1), np.float32(2))
    (tmp_path / "file").write_bytes(b"abc")
    failpoint("stretch.when_done", 2, tmp_path)
    assert (tmp_path / "file").read_bytes() == b"`bc"
    failpoints.arm(["run1/rank0/step.before_forward=corrupt@1"])
    with pytest.raises(FailpointRaised, match="nothing to corrupt"):
        failpoint("step.before_forward", 1)


@pytest.mark.parametrize(
    ("action", "number"), [("kill", signal.SIGKILL), ("kill:SIGSEGV", signal.SIGSEGV), ("stop", signal.SIGSTOP)]
)
def test_a_process_ends_or_stops_itself(action: str, number: int) -> None:
    code = (
        "from worker import failpoints\n"
        f"failpoints.arm(['run1/rank0/step.before_forward={action}@1', 'run1/rank0/step.before_forward=sleep:0.01@2'])\n"
        "failpoints.failpoint('step.before_forward')\nfailpoints.failpoint('step.before_forward')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, ALLOW: "1"}, stderr=subprocess.PIPE)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    if number == signal.SIGSTOP:
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == number
        os.kill(process.pid, signal.SIGCONT)
        _, status = os.waitpid(process.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    else:
        assert os.waitstatus_to_exitcode(status) == -number
    process.returncode = 0
    assert process.stderr is not None
    process.stderr.close()


def test_points_go_to_their_victims_alone(allowed: None) -> None:
    points = [
        "run1/rank0/step.before_forward=kill@1",
        "run1/group3/rank0/step.before_forward=kill@2",
        "run2/rank0/step.before_forward=kill@3",
        "run2/coordinator/run.before_end=kill@1",
    ]
    assert failpoints.of_worker(points, 1, 1, 0) == points[:1]
    assert failpoints.of_worker(points, 1, 3, 0) == points[1:2]
    assert failpoints.of_worker(points, 1, 2, 0) == failpoints.of_worker(points, 1, 1, 1) == []
    assert failpoints.of_worker(points, 2, 1, 0) == points[2:3]
    assert failpoints.of_coordinator(points, 2) == points[3:] and failpoints.of_coordinator(points, 1) == []


@pytest.mark.parametrize(
    "point",
    [
        "reduce.after_post=kill@3",
        "run1/rank2/reduce.after_post=kill",
        "run1/rank2/reduce.after_post=kill@0",
        "run1/rank2/reduce.after_post=explode@1",
        "run1/rank2/nowhere.at_all=kill@1",
        "run1/coordinator/reduce.after_post=kill@1",
        "run1/rank0/run.before_end=kill@1",
    ],
)
def test_what_is_no_point_is_refused(allowed: None, point: str) -> None:
    with pytest.raises(UserError, match="failpoints: got "):
        failpoints.arm([point])


def test_a_worker_refuses_points_where_they_are_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOW, raising=False)
    request = worker_pb2.WorkerRequest(join=worker_pb2.JoinRequest(failpoints=[POINT]))
    reply = worker_pb2.WorkerReply.FromString(ShardWorker("node", "127.0.0.1").handle(request.SerializeToString()))
    assert reply.failure.kind == worker_pb2.Failure.USER and f"{ALLOW}=1" in reply.failure.text


def test_a_run_refuses_points_where_they_are_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOW, raising=False)
    group = LocalGroup()
    with pytest.raises(UserError, match=f"{ALLOW}=1"):
        run_once(fault_order(tmp_path, points=[POINT]), tmp_path, make_group=lambda: group)
    assert group.size == 0
    assert agent.RunOrder.DESCRIPTOR.fields_by_name["failpoints"].number == 12


# The list, the source, the matrix and the docs


def in_source(folder: str) -> list[str]:
    """The names that the calls in a folder's files give."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("failpoint", "halfway"):
                if path == ROOT / "worker/failpoints.py":
                    continue
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}: the name must stand there"
                found.append(str(node.args[0].value))
    return found


@pytest.mark.parametrize(("folder", "names"), [("worker", WORKER), ("coordinator", COORDINATOR)])
def test_every_name_stands_once_in_the_source(folder: str, names: dict[str, str]) -> None:
    assert sorted(in_source(folder)) == sorted(names)


def test_every_name_is_in_a_row() -> None:
    for row, names in ((1, WORKER), (2, COORDINATOR)):
        tested = {place for case in ROWS[row].fixed() for place in places_of(case)}
        assert set(names) <= tested


def test_names_say_what_and_when() -> None:
    assert len(WORKER) >= 16 and len(COORDINATOR) >= 18 and len(NAMES) == len(WORKER) + len(COORDINATOR)
    for name, sentence in NAMES.items():
        assert re.fullmatch(r"[a-z]+\.(before|when|after)_[a-z_]+", name) and sentence.endswith(".")


def test_the_engine_knows_no_failpoints() -> None:
    assert not [path for path in (ROOT / "worker/nn").rglob("*.py") if "failpoint" in path.read_text()]


def test_the_docs_list_the_names() -> None:
    listed = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| (.+) \|$", (ROOT / "docs/reliability.md").read_text(), re.MULTILINE)
    assert listed == list(NAMES.items())
