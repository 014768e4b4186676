"""Pause, resume and scale in the API server's tests: the calls, and what is looked at afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

from lockstep.v1 import training_job_service_pb2 as pb
from lockstep.v1.cluster_service_pb2 import GetClusterRequest
from lockstep.v1.job_spec_pb2 import Workers
from lockstep.v1.training_job_pb2 import TrainingJob
from tests.services.fake_agent import FakeAgent, started
from tests.services.running import METADATA, Running
from tests.services.specs import spec


async def pause(api: Running, job: str, **fields: Any) -> TrainingJob:
    request = pb.PauseTrainingJobRequest(name=f"jobs/{job}", **fields)
    answer: TrainingJob = await api.jobs.PauseTrainingJob(request, metadata=METADATA, timeout=5)
    return answer


async def resume(api: Running, job: str, **fields: Any) -> TrainingJob:
    request = pb.ResumeTrainingJobRequest(name=f"jobs/{job}", **fields)
    answer: TrainingJob = await api.jobs.ResumeTrainingJob(request, metadata=METADATA, timeout=5)
    return answer


async def scale(api: Running, job: str, least: int | None = None, most: int | None = None, **fields: Any) -> TrainingJob:
    return await scale_to(api, job, Workers(min=least, max=most), **fields)


async def scale_to(api: Running, job: str, workers: Workers, **fields: Any) -> TrainingJob:
    request = pb.ScaleTrainingJobRequest(name=f"jobs/{job}", workers=workers, **fields)
    answer: TrainingJob = await api.jobs.ScaleTrainingJob(request, metadata=METADATA, timeout=5)
    return answer


async def submitted(api: Running, least: int = 1, most: int = 2, **options: Any) -> str:
    job = spec(workers={"min": least, "max": most})
    return (await api.create(job, **options)).name.removeprefix("jobs/")


async def begun(api: Running, agent: FakeAgent, job: str, run: int = 1, workers: int = 2, resizable: bool = False) -> None:
    """The job's run was granted and takes steps."""
    await agent.wish(job, run)
    first = started(workers=workers)
    first["started"].resizable = resizable
    await agent.say(job, run, **first)


async def slots_in_use(api: Running) -> int:
    return int((await api.cluster.GetCluster(GetClusterRequest(), metadata=METADATA)).slots_in_use)


def bounds(job: TrainingJob) -> tuple[int, int]:
    return job.spec.workers.min, job.spec.workers.max


def states(events: list[Any]) -> list[int]:
    return [event.state_change.state for event in events if event.HasField("state_change")]


async def until_in_use(api: Running, slots: int) -> None:
    async with asyncio.timeout(5):
        while await slots_in_use(api) != slots:
            await asyncio.sleep(0.01)
