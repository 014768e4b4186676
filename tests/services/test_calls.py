"""What holds of every call: tokens, health, reflection, messages that cannot be read, limits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lockstep.v1 import training_job_service_pb2 as pb
from services import limits
from services.api import PUBLIC
from services.commands import token as token_command
from services.rpc import errors
from tests.services.running import AGENT_TOKEN, METADATA, Running, refusal, running

pytestmark = pytest.mark.anyio
Code = grpc.StatusCode
METHODS = [method for name in PUBLIC for method in descriptor_pool.Default().FindServiceByName(name).methods]
TOKENS = {
    "none": None,
    "empty": "",
    "garbage": "Bearer garbage-garbage",
    "basic": "Basic abc",
    "agent": f"Bearer {AGENT_TOKEN}",
}


async def call(api: Running, method: Any, request: bytes, metadata: Any) -> grpc.StatusCode:
    """Calls any method with raw bytes; gives the code."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    streams = method.client_streaming, method.server_streaming
    kind = {(False, False): "unary_unary", (False, True): "unary_stream", (True, False): "stream_unary"}[streams]
    stub = getattr(api.channel, kind)(path, request_serializer=None, response_deserializer=None)
    argument = iter([request]) if streams[0] else request
    try:
        answer = stub(argument, metadata=metadata, timeout=5)
        if streams[1]:
            async for _ in answer:
                pass
        else:
            await answer
    except grpc.aio.AioRpcError as error:
        return error.code()
    return Code.OK


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_no_method_answers_without_a_token(api: Running, method: Any) -> None:
    for value in TOKENS.values():
        metadata = None if value is None else (("authorization", value),)
        assert await call(api, method, b"", metadata) is Code.UNAUTHENTICATED


async def test_the_agents_listener_wants_the_agents_token_and_the_public_one_does_not_serve_it(api: Running) -> None:
    path = "/lockstep.internal.v1.AgentService/Connect"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{api.server.ports['agent']}") as agents:
        stub: Any = agents.stream_stream(path)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub(iter([b""]), metadata=METADATA, timeout=5):
                pass
    assert caught.value.code() is Code.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        stub = api.channel.stream_stream(path)
        async for _ in stub(iter([b""]), metadata=METADATA, timeout=5):
            pass
    assert caught.value.code() is Code.UNIMPLEMENTED


async def test_a_revoked_token_is_refused_at_once(tmp_path: Path) -> None:
    from click.testing import CliRunner

    runner = CliRunner()
    async with running(tmp_path, dataset=False) as api:
        made = runner.invoke(token_command.token, ["create", "--data", str(tmp_path), "ann"])
        secret = made.stdout.strip()
        metadata = (("authorization", f"Bearer {secret}"),)
        assert await call(api, METHODS[2], b"", metadata) is Code.OK
        assert secret not in (tmp_path / "store" / "tokens.json").read_text()
        assert (tmp_path / "store" / "tokens.json").stat().st_mode & 0o777 == 0o600
        again = runner.invoke(token_command.token, ["create", "--data", str(tmp_path), "ann"])
        assert again.exit_code == 2 and "revoke it first" in again.stderr
        assert runner.invoke(token_command.token, ["list", "--data", str(tmp_path)]).stdout.startswith("ann\t")
        assert runner.invoke(token_command.token, ["revoke", "--data", str(tmp_path), "ann"]).exit_code == 0
        listed = runner.invoke(token_command.token, ["list", "--data", str(tmp_path)])
        assert (listed.exit_code, listed.stdout) == (0, "") and listed.stderr.startswith("there are no tokens")
        assert await call(api, METHODS[2], b"", metadata) is Code.UNAUTHENTICATED


async def test_health_needs_no_token_and_the_cluster_is_healthy_with_an_agent_alone(api: Running) -> None:
    health = health_pb2_grpc.HealthStub(api.channel)

    async def status(service: str) -> str:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    assert [await status(name) for name in ("", *PUBLIC)] == ["SERVING", "SERVING", "SERVING", "NOT_SERVING"]
    async with api.agent() as agent:
        await agent.sync()
        assert await status(PUBLIC[2]) == "SERVING"
    async with asyncio.timeout(5):
        while await status(PUBLIC[2]) == "SERVING":
            await asyncio.sleep(0.01)


async def test_reflection_lists_the_services_behind_the_token(api: Running) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]), metadata=METADATA, timeout=5)]
    names = {service.name for service in answers[0].list_services_response.service}
    assert set(PUBLIC) <= names and not any("internal" in name for name in names)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.ServerReflectionInfo(iter([request]), timeout=5):
            pass
    assert caught.value.code() is Code.UNAUTHENTICATED


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_bytes_that_are_no_message_are_the_callers_fault(api: Running, method: Any) -> None:
    deep = b""
    for _ in range(200):
        deep = b"\x0a" + _varint(len(deep)) + deep
    for data in (b"\xff", b"\x0a\x05ab", b"\x08" * 40, deep):
        assert await call(api, method, data, METADATA) in (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED, Code.OK)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


async def test_a_message_above_the_limit_is_refused(api: Running) -> None:
    request = pb.GetTrainingJobRequest(name="a" * (limits.REQUEST_BYTES + 1))
    assert (await refusal(api.jobs.GetTrainingJob(request, metadata=METADATA))).code() is Code.RESOURCE_EXHAUSTED


async def test_metadata_above_the_limit_is_refused(api: Running) -> None:
    metadata = (*METADATA, ("x-large", "a" * (2 * limits.METADATA_BYTES)))
    assert await call(api, METHODS[2], b"", metadata) is not Code.OK
    assert await call(api, METHODS[2], b"", METADATA) is Code.OK


async def test_work_whose_deadline_passed_is_refused(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNARY_SECONDS", 0.0)
    error = await refusal(api.jobs.ListTrainingJobs(pb.ListTrainingJobsRequest(), metadata=METADATA, timeout=5))
    assert error.code() is Code.DEADLINE_EXCEEDED


async def test_our_own_faults_are_internal_without_a_trace(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret words")

    monkeypatch.setattr(api.server.store, "run", broken)
    error = await refusal(api.jobs.ListTrainingJobs(pb.ListTrainingJobsRequest(), metadata=METADATA))
    assert error.code() is Code.INTERNAL and "secret" not in (error.details() or "") and "report" in (error.details() or "")


def test_every_code_of_the_table_is_one_that_a_client_understands() -> None:
    assert set(errors.RETRY_SECONDS) <= set(errors.CODES)
    retried = {errors.CODES[reason] for reason in errors.RETRY_SECONDS}
    assert retried == {Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE}


def test_every_request_has_a_class() -> None:
    assert all(GetMessageClass(method.input_type) for method in METHODS)
