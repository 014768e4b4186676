"""A worker of a real Ray is killed in its forward pass, in the reduction, in the update: the weights are those of one worker.

The places are failpoints, for which the API has no field: the agent gets its orders from a stand-in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.internal.v1 import agent_service_pb2 as agent
from tests.coordinator.api_server import ApiServer
from tests.coordinator.on_ray import WAIT_S, server_on_ray
from tests.coordinator.one_run import curve
from tests.faults.fault_job import fault_order, reference
from worker.failpoints import ALLOW

from .runs import gone

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mid-step") / "files"


@pytest.fixture(scope="module")
def server(files: Path) -> Iterator[ApiServer]:
    """The stand-in; its agent is connected to a Ray with three slots whose workers heed points."""
    with server_on_ray(files, cpus=3, environment={ALLOW: "1"}) as server:
        yield server


@pytest.mark.parametrize("place", ["step.after_forward", "reduce.when_half_done", "update.when_half_done"])
def test_a_worker_killed_in_mid_step_changes_nothing(server: ApiServer, files: Path, place: str) -> None:
    order = fault_order(files, workers=3, points=[f"run1/rank1/{place}=kill@5"])
    order.job_id = place.replace(".", "-").replace("_", "-")
    key = server.wish(order)
    ended = server.wait(lambda: server.ended(key), WAIT_S)
    assert ended.outcome == agent.RunEnded.SUCCEEDED, ended.reason
    undisturbed, events = reference(), server.events[key]
    assert ended.result.weights_sha256 == undisturbed.hashes[ended.result.step]
    assert curve(events) == undisturbed.curve
    groups = [event.started.members for event in events if event.HasField("started")]
    (said,) = [event.notice.text for event in events if event.notice.reason == "WORKER_LOST"]
    assert len(groups) > 1 and f"pid {groups[0][1].pid})" in said
    server.wait(lambda: all(gone(member.pid) for members in groups for member in members), WAIT_S)
