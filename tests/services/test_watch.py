"""Watch: every event once and in order, whatever was cut; ends with the job; slow readers skip superseded progress alone."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from lockstep.internal.v1 import agent_service_pb2 as pb
from lockstep.v1 import training_job_service_pb2 as service
from lockstep.v1.training_job_pb2 import JobEvent, Progress
from services import limits
from services.store import events
from tests.services.fake_agent import ended, points, progress, started
from tests.services.running import METADATA, Running, refusal

pytestmark = pytest.mark.anyio


async def test_a_cut_watch_resumes_after_the_last_number(api: Running) -> None:
    job = (await api.create()).name
    identity = job.removeprefix("jobs/")
    seen: list[JobEvent] = []

    async def follow() -> None:
        """Reads three events and lets the stream go, again and again, until it ends by itself."""
        while True:
            number = seen[-1].number if seen else 0
            call = api.jobs.WatchTrainingJob(
                service.WatchTrainingJobRequest(name=job, after_number=number), metadata=METADATA, timeout=10
            )
            taken = 0
            async for answer in call:
                seen.append(answer.event)
                taken += 1
                if taken == 3:
                    call.cancel()
                    break
            else:
                return

    following = asyncio.create_task(follow())
    async with api.agent() as agent:
        await agent.sync()
        await agent.wish(identity)
        await agent.say(identity, 1, **started())
        for step in range(1, 21):
            await agent.say(identity, 1, **points(step, loss=float(step)))
            await agent.say(identity, 1, **progress(step))
        await agent.say(identity, 1, **ended(pb.RunEnded.SUCCEEDED, "all", 20))
    async with asyncio.timeout(10):
        await following
    numbers = [event.number for event in seen]
    assert numbers == sorted(set(numbers))
    assert [event.points.step for event in seen if event.HasField("points")] == list(range(1, 21))
    assert seen[-1].HasField("state_change")


async def test_a_watch_of_an_ended_job_ends(api: Running) -> None:
    job = (await api.create()).name
    await api.cancel(job)
    whole = await api.watch(job)
    assert await api.watch(job, whole[-1].number) == []
    assert await api.watch(job, 2**63) == []
    assert (await refusal(_first(api, "jobs/none"))).code() is grpc.StatusCode.NOT_FOUND


async def _first(api: Running, name: str) -> Any:
    async for answer in api.jobs.WatchTrainingJob(service.WatchTrainingJobRequest(name=name), metadata=METADATA):
        return answer
    return None


async def test_many_events_come_in_batches(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WATCH_BATCH", 4)
    job = (await api.create()).name
    identity = job.removeprefix("jobs/")

    def write(connection: Any) -> None:
        for step in range(30):
            events.append(connection, identity, 1, 0, progress=Progress(step=step))
            events.append(connection, identity, 1, 0, points=points(step, loss=1.0)["points"])

    await api.server.store.run(write)
    await api.cancel(job)
    seen = await api.watch(job)
    assert [event.points.step for event in seen if event.HasField("points")] == list(range(30))
    assert [event.progress.step for event in seen if event.HasField("progress")] == [29]


async def test_beats_when_nothing_happens(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BEAT_SECONDS", 0.05)
    job = (await api.create()).name
    kinds = []
    async for answer in api.jobs.WatchTrainingJob(service.WatchTrainingJobRequest(name=job), metadata=METADATA, timeout=10):
        kinds.append(answer.event.WhichOneof("event"))
        if kinds.count("beat") == 2:
            break
    assert kinds == ["state_change", "beat", "beat"]


async def test_a_reader_that_does_not_read_holds_up_nobody(api: Running) -> None:
    job = (await api.create()).name
    identity = job.removeprefix("jobs/")
    slow = api.jobs.WatchTrainingJob(service.WatchTrainingJobRequest(name=job), metadata=METADATA, timeout=10)
    await slow.read()
    async with api.agent() as agent:
        await agent.sync()
        await agent.wish(identity)
        await agent.say(identity, 1, **started())
        for step in range(1, 60):
            await agent.say(identity, 1, **progress(step))
        await agent.say(identity, 1, **ended(pb.RunEnded.SUCCEEDED, "all", 60))
    rest = []
    while (answer := await slow.read()) is not grpc.aio.EOF:
        rest.append(answer.event)
    steps = [event.progress.step for event in rest if event.HasField("progress")]
    assert steps == sorted(set(steps)) and steps[-1] == 59
    assert rest[-1].HasField("state_change")


async def test_a_server_that_stops_says_so_to_its_watchers(api: Running) -> None:
    job = (await api.create()).name
    watching = api.jobs.WatchTrainingJob(service.WatchTrainingJobRequest(name=job), metadata=METADATA, timeout=10)
    await watching.read()
    api.server.wakeups.stop()

    async def rest() -> None:
        while await watching.read() is not grpc.aio.EOF:
            pass

    error = await refusal(rest)
    assert error.code() is grpc.StatusCode.UNAVAILABLE and "watch again" in (error.details() or "")


async def test_watchers_have_a_bound_and_are_forgotten(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WATCHERS", 1)
    job = (await api.create()).name
    first = api.jobs.WatchTrainingJob(service.WatchTrainingJobRequest(name=job), metadata=METADATA, timeout=10)
    await first.read()
    assert (await refusal(_first(api, job))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()
    async with asyncio.timeout(5):
        while api.server.wakeups.count:
            await asyncio.sleep(0.01)
    assert (await _first(api, job)).event.number == 1
