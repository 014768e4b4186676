"""An API server inside the test's event loop, and stubs to call it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from lockstep.v1 import (
    cluster_service_pb2_grpc,
    dataset_service_pb2_grpc,
    training_job_service_pb2_grpc,
)
from lockstep.v1 import training_job_service_pb2 as pb
from lockstep.v1.dataset_service_pb2 import DatasetSchema
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import JobEvent, TrainingJob
from services.addresses import Address
from services.api import ApiServer, Settings
from services.store import datasets as dataset_rows
from tests.services.fake_agent import FakeAgent
from tests.services.specs import DIGEST, DIGITS, spec

TOKEN = "user-token-of-the-tests"
AGENT_TOKEN = "agent-token-of-the-tests"
METADATA = (("authorization", f"Bearer {TOKEN}"),)
ANY = Address("127.0.0.1", 0)
DEADLINE_S = 10.0


class Running:
    """A started server, a channel to it and the stubs."""

    def __init__(self, server: ApiServer, channel: grpc.aio.Channel) -> None:
        self.server, self.channel = server, channel
        self.jobs: Any = training_job_service_pb2_grpc.TrainingJobServiceStub(channel)
        self.datasets: Any = dataset_service_pb2_grpc.DatasetServiceStub(channel)
        self.cluster: Any = cluster_service_pb2_grpc.ClusterServiceStub(channel)

    def agent(self, **options: Any) -> FakeAgent:
        """A fake agent, not yet connected."""
        return FakeAgent(self.server.ports["agent"], AGENT_TOKEN, **options)

    async def create(self, job: JobSpec | None = None, **options: Any) -> TrainingJob:
        """Submits the digits job, or another."""
        request = pb.CreateTrainingJobRequest(training_job=TrainingJob(spec=job or spec()), **options)
        answer: TrainingJob = await self.jobs.CreateTrainingJob(request, metadata=METADATA, timeout=DEADLINE_S)
        return answer

    async def get(self, name: str) -> TrainingJob:
        """Reads a job."""
        request = pb.GetTrainingJobRequest(name=name)
        answer: TrainingJob = await self.jobs.GetTrainingJob(request, metadata=METADATA, timeout=DEADLINE_S)
        return answer

    async def cancel(self, name: str) -> TrainingJob:
        """Cancels a job."""
        request = pb.CancelTrainingJobRequest(name=name)
        answer: TrainingJob = await self.jobs.CancelTrainingJob(request, metadata=METADATA, timeout=DEADLINE_S)
        return answer

    async def watch(self, name: str, after_number: int = 0) -> list[JobEvent]:
        """All events until the job's end."""
        request = pb.WatchTrainingJobRequest(name=name, after_number=after_number)
        return [answer.event async for answer in self.jobs.WatchTrainingJob(request, metadata=METADATA, timeout=DEADLINE_S)]

    async def until(self, name: str, *states: TrainingJob.State.ValueType) -> TrainingJob:
        """Waits until the job is in one of the states."""
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while (job := await self.get(name)).state not in states:
            assert asyncio.get_running_loop().time() < deadline, f"{name} stays {TrainingJob.State.Name(job.state)}"
            await asyncio.sleep(0.01)
        return job

    async def without_agent(self) -> None:
        """Waits until the agent before is seen to be gone: another one would be refused."""
        async with asyncio.timeout(DEADLINE_S):
            while self.server.agent_desk.connected:
                await asyncio.sleep(0.01)

    async def add_dataset(self, name: str = "digits", schema: DatasetSchema = DIGITS, digest: str = DIGEST) -> None:
        """Registers a dataset without a file."""
        now = self.server.settings.clock()
        await self.server.store.run(lambda c: dataset_rows.add_version(c, name, digest, schema, [], now))


@asynccontextmanager
async def running(data: Path, dataset: bool = True, **changes: Any) -> AsyncIterator[Running]:
    """A server on free ports; with the dataset `digits` unless told otherwise."""
    settings = Settings(data=data, listen=ANY, http_listen=ANY, agent_listen=ANY, tokens=[TOKEN], agent_tokens=[AGENT_TOKEN])
    server = ApiServer(replace(settings, **changes))
    try:
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
            api = Running(server, channel)
            if dataset:
                await api.add_dataset()
            yield api
    finally:
        await server.stop()


async def refusal(call: Awaitable[Any] | Callable[[], Awaitable[Any]]) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    try:
        await (call() if callable(call) else call)
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call was not refused")
