"""The exporter and the HTTP side: text that Prometheus reads, series that end, numbers that are not finite, who may look."""

from __future__ import annotations

import asyncio
import math
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lockstep.internal.v1 import agent_service_pb2 as pb
from lockstep.v1.training_job_pb2 import Progress, ValidationMetrics
from services.http import host_allowed
from services.metrics import VALIDATION_GAUGES, CallMetrics, LiveJob, Snapshot, exposition
from tests.services.fake_agent import ended, progress, started
from tests.services.running import TOKEN, Running

pytestmark = pytest.mark.anyio
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def series(text: bytes) -> Series:
    """Name and labels of every sample, with its value."""
    families = text_string_to_metric_families(text.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def get(port: int, path: str = "/metrics", host: str = "", token: str = "") -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if host:
        request.add_header("Host", host)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


async def scraped(api: Running) -> Series:
    status, text = await asyncio.to_thread(get, api.server.ports["http"])
    assert status == 200
    return series(text)


async def test_series_of_a_job_live_as_long_as_it_does(api: Running) -> None:
    job = (await api.create()).name.removeprefix("jobs/")
    label = (("training_job", job),)
    async with api.agent() as agent:
        await agent.sync()
        await agent.wish(job)
        await agent.say(job, 1, **started())
        await agent.say(job, 1, **progress(7, rows=896, skipped=2))
        found = await scraped(api)
        assert found["lockstep_job_step", label] == 7 and found["lockstep_job_loss", label] == 1 / 7
        assert found["lockstep_job_applied_rows_total", label] == 896
        assert found["lockstep_job_replayed_rows_total", label] == 0
        assert found["lockstep_job_skipped_steps_total", label] == 2
        assert found["lockstep_job_state", (("state", "RUNNING"), *label)] == 1
        assert found["lockstep_job_state", (("state", "QUEUED"), *label)] == 0
        assert ("lockstep_job_validation_loss", label) not in found
        assert not any("validation" in name for name, _ in found)
        assert found["lockstep_slots", ()] == 2 and found["lockstep_slots_in_use", ()] == 2
        assert found["lockstep_agent_connected", ()] == 1
        assert found["lockstep_rpc_requests_total", (("code", "OK"), ("method", "CreateTrainingJob"))] == 1
        await agent.say(job, 1, **ended(pb.RunEnded.SUCCEEDED, "all", 7))
    found = await scraped(api)
    assert not [name for name, labels in found if ("training_job", job) in labels]
    assert found["lockstep_jobs", (("state", "SUCCEEDED"),)] == 1
    assert ("lockstep_build_info", (("arithmetic_version", "1"), ("version", "0.1.0"))) in found


def test_every_metric_of_an_evaluation_has_a_gauge_where_it_has_a_value() -> None:
    fields = [field.name for field in ValidationMetrics.DESCRIPTOR.fields]
    assert [field for _, field in VALIDATION_GAUGES] == fields
    for number, name in enumerate(fields):
        progress = Progress(step=1, validation_metrics=ValidationMetrics(**{name: number / 4}))
        found = series(exposition(Snapshot([LiveJob("a", "RUNNING", progress, 0, 0, 1)], {}, 1, 1, True, 0), CallMetrics()))
        told = {key: value for key, value in found.items() if "validation" in key[0]}
        assert told == {(f"lockstep_job_validation_{name}", (("training_job", "a"),)): number / 4}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_told(value: float) -> None:
    job = LiveJob("a", "RUNNING", Progress(step=1, loss=value, samples_per_second=value), 0, 0, 1_500_000)
    found = series(exposition(Snapshot([job], {}, 1, 1, True, 0), CallMetrics()))
    told = found["lockstep_job_loss", (("training_job", "a"),)]
    assert told == value or (math.isnan(told) and math.isnan(value))
    assert found["lockstep_job_update_timestamp_seconds", (("training_job", "a"),)] == 1.5


async def test_health_and_what_is_not_there(api: Running) -> None:
    port = api.server.ports["http"]
    assert await asyncio.to_thread(get, port, "/healthz") == (200, b"ok\n")
    assert (await asyncio.to_thread(get, port, "/"))[0] == 404
    api.server.store.broken = "the disk is gone"
    assert await asyncio.to_thread(get, port, "/healthz") == (503, b"the disk is gone\n")


async def test_a_stranger_host_is_refused(api: Running) -> None:
    port = api.server.ports["http"]
    assert (await asyncio.to_thread(get, port, host="evil.example:80"))[0] == 421
    assert (await asyncio.to_thread(get, port, host="localhost:7461"))[0] == 200


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("127.0.0.1:7461", True),
        ("[::1]:7461", True),
        ("localhost", True),
        ("api:7461", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("metrics.corp.example:7461", True),
        ("", False),
    ],
)
def test_hosts(header: str, allowed: bool) -> None:
    assert host_allowed(header, {"metrics.corp.example"}) is allowed


async def test_other_machines_need_a_token(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from services import http

    monkeypatch.setattr(http, "_is_loopback", lambda request: False)
    port = api.server.ports["http"]
    assert (await asyncio.to_thread(get, port))[0] == 401
    assert (await asyncio.to_thread(get, port, token="wrong-token-wrong-token"))[0] == 401
    assert (await asyncio.to_thread(get, port, token=TOKEN))[0] == 200


def test_no_label_holds_a_path_or_a_token() -> None:
    job = LiveJob("a", "RUNNING", Progress(step=1), 0, 0, 1_500_000)
    text = exposition(Snapshot([job], {}, 1, 1, True, 0), CallMetrics()).decode()
    assert "/" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
