"""Create, Get and the other verbs: idempotency, strong consistency, refusals with details."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from lockstep.internal.v1 import agent_service_pb2 as pb2
from lockstep.v1 import training_job_service_pb2 as pb
from lockstep.v1.training_job_pb2 import TrainingJob
from services import limits
from services.clock import SECOND, wall_clock
from services.store import requests as request_rows
from tests.services.fake_agent import ended, started
from tests.services.running import METADATA, Running, refusal, running
from tests.services.specs import spec

pytestmark = pytest.mark.anyio
Code = grpc.StatusCode


def details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, dict[str, str]]:
    """ErrorInfo and the violations of an error; each kind of detail stands once."""
    status = rpc_status.from_call(error)
    assert status is not None
    assert len({detail.type_url for detail in status.details}) == len(status.details)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    assert info.domain == "lockstep" and len(info.reason) <= 63
    return info, {violation.field: violation.description for violation in bad.field_violations}


async def test_a_get_sees_what_create_answered(api: Running) -> None:
    created = await api.create()
    assert created.name.startswith("jobs/digits-mlp-") and created.state == TrainingJob.QUEUED
    assert len(created.arithmetic_digest) == 64 and created.plan.total_steps == 240
    got = await api.get(created.name)
    assert (got.spec, got.plan, got.create_time) == (created.spec, created.plan, created.create_time)
    async with asyncio.timeout(10):  # the queue says it a moment later
        while not (await api.get(created.name)).status_detail.startswith("place 1 of 1 in the queue"):
            await asyncio.sleep(0.01)


async def test_the_same_request_id_gives_the_same_job_also_after_a_new_start(tmp_path: Path) -> None:
    one = str(uuid.uuid4())
    async with running(tmp_path) as api:
        first = await api.create(request_id=one)
        several = await asyncio.gather(*(api.create(request_id=one) for _ in range(5)))
        assert {job.name for job in several} == {first.name}
    async with running(tmp_path) as api:
        assert (await api.create(request_id=one)).name == first.name
        assert (await api.create(request_id=str(uuid.uuid4()))).name != first.name
        assert await refused_code(api, job_name="other", request_id=one) is Code.INVALID_ARGUMENT


async def test_a_request_id_is_new_again_after_a_day(tmp_path: Path) -> None:
    now = [wall_clock()]
    async with running(tmp_path, clock=lambda: now[0]) as api:
        first = await api.create(request_id="0" * 8 + "-0000-4000-8000-" + "0" * 12)
        now[0] += (limits.REQUEST_IDS_KEPT_SECONDS + 1) * SECOND
        await api.server.store.run(lambda c: request_rows.purge(c, now[0]))
        assert (await api.create(request_id="0" * 8 + "-0000-4000-8000-" + "0" * 12)).name != first.name


async def refused_code(api: Running, job_name: str, **options: str) -> grpc.StatusCode:
    return (await refusal(api.create(spec(name=job_name), **options))).code()


async def test_validate_only_and_plan_store_nothing_and_say_the_same(api: Running) -> None:
    draft = await api.create(validate_only=True)
    request = pb.PlanTrainingJobRequest(training_job=TrainingJob(spec=spec()))
    plan = await api.jobs.PlanTrainingJob(request, metadata=METADATA)
    assert (draft.spec, draft.plan, draft.arithmetic_digest) == (plan.spec, plan.plan, plan.arithmetic_digest)
    assert not (await api.jobs.ListTrainingJobs(pb.ListTrainingJobsRequest(), metadata=METADATA)).training_jobs


async def test_every_violation_at_once_with_its_place(api: Running) -> None:
    job = spec(optimizer={"sgd": {"learning_rate": -1}}, training={"epochs": 0, "batch_size": 1}, dataset="datasets/none")
    error = await refusal(api.create(job))
    info, violations = details(error)
    assert error.code() is Code.INVALID_ARGUMENT and info.reason and info.metadata["place"] in violations
    assert violations["optimizer.sgd.learning_rate"] == "got -1.0; it must be above 0"
    assert set(violations) == {"optimizer.sgd.learning_rate", "training.epochs", "dataset"}


async def test_many_violations_fit_into_what_a_client_takes(api: Running) -> None:
    layers = [{"dense": {"units": 0}} for _ in range(512)]
    error = await refusal(api.create(spec(model={"layers": layers})))
    assert error.code() is Code.INVALID_ARGUMENT and error.details() is not None
    *shown, last = str(error.details()).splitlines()
    assert len(shown) > 5 and last == f"and {512 - len(shown)} more"


async def test_a_chosen_id_and_one_that_is_taken(api: Running) -> None:
    assert (await api.create(training_job_id="mine")).name == "jobs/mine"
    error = await refusal(api.create(training_job_id="mine"))
    assert error.code() is Code.ALREADY_EXISTS and details(error)[0].reason == "JOB_EXISTS"
    assert (await refusal(api.create(training_job_id="../etc"))).code() is Code.INVALID_ARGUMENT


async def test_what_is_not_there_and_what_is_not_a_name(api: Running) -> None:
    error = await refusal(api.get("jobs/none"))
    assert error.code() is Code.NOT_FOUND and details(error)[0].metadata["value"] == "jobs/none"
    for name in ("none", "jobs/../x", "jobs/", "jobs/A", "jobs/a/b", "jobs/" + "a" * 64, "\0"):
        assert (await refusal(api.get(name))).code() is Code.INVALID_ARGUMENT


async def test_cancel_is_harmless_twice_and_refused_after_success(api: Running) -> None:
    name = (await api.create()).name
    assert (await api.cancel(name)).state == TrainingJob.CANCELLED
    assert (await api.cancel(name)).state == TrainingJob.CANCELLED
    other = (await api.create()).name
    identity = other.removeprefix("jobs/")
    async with api.agent() as agent:
        await agent.sync()
        await agent.wish(identity)
        await agent.say(identity, 1, **started())
        await agent.say(identity, 1, **ended(pb2.RunEnded.SUCCEEDED, "done", 240))
        assert (await api.get(other)).state == TrainingJob.SUCCEEDED
        error = await refusal(api.cancel(other))
    assert error.code() is Code.FAILED_PRECONDITION and "SUCCEEDED" in (error.details() or "")


async def test_only_an_ended_job_is_deleted(api: Running) -> None:
    name = (await api.create()).name
    request = pb.DeleteTrainingJobRequest(name=name)
    assert (await refusal(api.jobs.DeleteTrainingJob(request, metadata=METADATA))).code() is Code.FAILED_PRECONDITION
    await api.cancel(name)
    await api.jobs.DeleteTrainingJob(request, metadata=METADATA)
    assert (await refusal(api.get(name))).code() is Code.NOT_FOUND


async def test_fifty_callers_at_once_lose_nothing(api: Running) -> None:
    async def one(number: int) -> str:
        name = (await api.create(spec(name=f"job-{number}"))).name
        await api.cancel(name)
        return name

    names = await asyncio.gather(*(one(number) for number in range(50)))
    assert len(set(names)) == 50
    assert {(await api.get(name)).state for name in names} == {TrainingJob.CANCELLED}


async def test_a_job_that_is_too_large_is_refused(api: Running) -> None:
    job = spec(labels={f"k{number}": "v" for number in range(65)})
    assert (await refusal(api.create(job))).code() is Code.INVALID_ARGUMENT
    deep = spec(model={"layers": [{"relu": {}}] * 513})
    assert "512" in ((await refusal(api.create(deep))).details() or "")
