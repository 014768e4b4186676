"""Pause and resume: what is answered, what the agent is told, and what becomes of the slots."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest

from lockstep.internal.v1 import agent_service_pb2 as pb2
from lockstep.v1 import training_job_service_pb2 as pb
from lockstep.v1.training_job_pb2 import TrainingJob
from services import limits
from services.clock import SECOND, wall_clock
from services.jobs import lifecycle
from tests.services.fake_agent import checkpoint, ended, progress, started
from tests.services.running import METADATA, Running, refusal, running
from tests.services.steering import begun, bounds, pause, resume, scale, slots_in_use, states, submitted, until_in_use

pytestmark = pytest.mark.anyio
S, Code, Outcome = TrainingJob.State, grpc.StatusCode, pb2.RunEnded


async def test_a_running_job_pauses_gives_its_slots_back_and_goes_on(api: Running) -> None:
    job, other = await submitted(api), await submitted(api)
    async with api.agent() as agent:
        await agent.sync(slots=2)
        await begun(api, agent, job)
        asked = await pause(api, job)
        assert asked.state == S.PAUSING
        assert asked.status_detail == "the stretch under way ends, then a checkpoint is written"
        await agent.until(lambda: agent.wishes.runs[0].intent == pb2.RunWish.PAUSE)
        assert (await pause(api, job)).state == S.PAUSING  # a second time changes nothing
        await agent.say(job, 1, **progress(40))
        assert (await api.get(f"jobs/{other}")).state == S.QUEUED and await slots_in_use(api) == 2
        await agent.say(job, 1, **checkpoint(40))
        await agent.say(job, 1, **ended(Outcome.PAUSED, "paused at step 40", 40))
        paused = await api.get(f"jobs/{job}")
        assert (paused.state, paused.status_detail, paused.runs[0].end_reason) == (S.PAUSED, *["paused at step 40"] * 2)
        await agent.wish(other)  # the slots are its now
        assert (await pause(api, job)).state == S.PAUSED
        queued = await resume(api, job)
        assert queued.state == S.QUEUED
        await agent.say(other, 1, **ended(Outcome.SUCCEEDED, "done", 240))
        assert (await agent.wish(job, 2)).order.run_number == 2
        await agent.say(job, 2, **started(step=40))
        await agent.say(job, 2, **ended(Outcome.SUCCEEDED, "done", 240))
    expected = [S.QUEUED, S.STARTING, S.RUNNING, S.PAUSING, S.PAUSED, S.QUEUED, S.STARTING, S.RUNNING, S.SUCCEEDED]
    events = await api.watch(f"jobs/{job}")
    assert states(events) == expected
    details = [event.state_change.detail for event in events if event.HasField("state_change")]
    assert details[5] == "resumed; it goes on from the checkpoint of step 40"


async def test_jobs_without_a_run_pause_at_once(api: Running) -> None:
    job = await submitted(api)
    paused = await pause(api, job)
    assert (paused.state, paused.status_detail) == (S.PAUSED, "paused; it begins with the first step")
    async with api.agent() as agent:
        await agent.sync()
        assert not agent.wishes.runs
        assert (await resume(api, job)).state in (S.QUEUED, S.STARTING)
        await begun(api, agent, job)


async def test_a_job_that_waits_for_a_new_run_pauses_at_once(api: Running) -> None:
    job = await submitted(api, 2, 2)
    async with api.agent() as agent:
        await agent.sync(slots=2)
        await begun(api, agent, job)
        await agent.say(job, 1, **checkpoint(30))
    await api.without_agent()
    async with api.agent() as agent:  # another agent, whose cluster is too small for the next run
        await agent.sync(slots=1)
        await api.until(f"jobs/{job}", S.RECOVERING)
        paused = await pause(api, job)
        assert (paused.state, paused.status_detail) == (S.PAUSED, "paused; it goes on from the checkpoint of step 30")
    await api.cancel(f"jobs/{job}")
    assert states(await api.watch(f"jobs/{job}"))[-3:] == [S.PAUSING, S.PAUSED, S.CANCELLED]


async def test_a_pause_survives_a_new_server(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        job = await submitted(api)
        async with api.agent(agent_id="a1") as agent:
            await agent.sync()
            await begun(api, agent, job)
        await pause(api, job)
    async with running(tmp_path) as api, api.agent(agent_id="a1") as agent:
        agent.resume_at(job, 1, 1)
        await agent.sync(running=[(job, 1)])
        assert (await agent.wish(job)).intent == pb2.RunWish.PAUSE
        await agent.say(job, 1, **ended(Outcome.PAUSED, "paused at step 7", 7))
        assert (await api.get(f"jobs/{job}")).state == S.PAUSED
    async with running(tmp_path) as api, api.agent() as agent:
        await agent.sync()
        assert (await api.get(f"jobs/{job}")).state == S.PAUSED and not agent.wishes.runs


async def test_a_run_that_is_lost_while_it_pauses_has_paused(api: Running) -> None:
    job = await submitted(api)
    async with api.agent() as agent:
        await agent.sync()
        await begun(api, agent, job)
        await agent.say(job, 1, **checkpoint(30))
        await pause(api, job)
        await agent.say(job, 1, **ended(Outcome.LOST, "worker 1 was killed", 35))
        paused = await api.get(f"jobs/{job}")
        assert paused.state == S.PAUSED
        assert paused.status_detail == (
            "paused; its run was lost before it had written a checkpoint (worker 1 was killed); "
            "it goes on from the checkpoint of step 30"
        )
        await until_in_use(api, 0)


async def test_a_job_that_ends_while_it_pauses_has_ended(api: Running) -> None:
    async with api.agent() as agent:
        await agent.sync()
        for outcome, state in ((Outcome.SUCCEEDED, S.SUCCEEDED), (Outcome.FAILED, S.FAILED)):
            job = await submitted(api)
            await begun(api, agent, job)
            await pause(api, job)
            await agent.say(job, 1, **ended(outcome, "so it ended", 240))
            assert (await api.get(f"jobs/{job}")).state == state


@pytest.mark.parametrize("late", [Outcome.PAUSED, Outcome.CANCELLED, Outcome.SUCCEEDED])
async def test_a_cancel_wins_over_a_pause(api: Running, late: Any) -> None:
    job = await submitted(api)
    async with api.agent() as agent:
        await agent.sync()
        await begun(api, agent, job)
        await pause(api, job)
        assert (await api.cancel(f"jobs/{job}")).state == S.CANCELLING
        assert (await refusal(pause(api, job))).code() is Code.FAILED_PRECONDITION
        await agent.until(lambda: agent.wishes.runs[0].intent == pb2.RunWish.CANCEL)
        await agent.say(job, 1, **ended(late, "as asked", 9))
        assert (await api.get(f"jobs/{job}")).state == S.CANCELLED


async def test_a_paused_job_can_be_cancelled_but_not_deleted(api: Running) -> None:
    job = await submitted(api)
    await pause(api, job)
    deletion = pb.DeleteTrainingJobRequest(name=f"jobs/{job}")
    error = await refusal(api.jobs.DeleteTrainingJob(deletion, metadata=METADATA))
    assert error.code() is Code.FAILED_PRECONDITION and "the job is PAUSED; cancel it first" in (error.details() or "")
    ended_job = await api.cancel(f"jobs/{job}")
    assert (ended_job.state, ended_job.status_detail) == (S.CANCELLED, "cancelled while it was paused")
    await api.jobs.DeleteTrainingJob(deletion, metadata=METADATA)


async def test_what_a_state_does_not_allow_is_refused_and_named(api: Running) -> None:
    job = await submitted(api)
    error = await refusal(resume(api, job))
    assert error.code() is Code.FAILED_PRECONDITION and "a job that is QUEUED cannot be resumed" in (error.details() or "")
    async with api.agent() as agent:
        await agent.sync()
        await begun(api, agent, job)
        await pause(api, job)
        error = await refusal(resume(api, job))
        assert error.code() is Code.FAILED_PRECONDITION and "as soon as it is PAUSED" in (error.details() or "")
    await api.cancel(f"jobs/{job}")
    for call, words in ((scale(api, job, most=1), "be scaled"), (pause(api, job), "be paused")):
        error = await refusal(call)
        assert error.code() is Code.FAILED_PRECONDITION
        assert f"a job that is CANCELLING cannot {words}; nothing was changed" in (error.details() or "")
    assert (await refusal(scale(api, "none", most=1))).code() is Code.NOT_FOUND
    assert (await refusal(resume(api, "../x"))).code() is Code.INVALID_ARGUMENT


async def test_the_same_request_again_changes_nothing_more(api: Running) -> None:
    job = await submitted(api)
    first, second, third = (str(uuid.uuid4()) for _ in range(3))
    await pause(api, job, request_id=first)
    await resume(api, job, request_id=second)
    assert (await resume(api, job, request_id=second)).state == S.QUEUED  # its answer was lost
    assert (await pause(api, job, request_id=first)).state == S.QUEUED  # late, and answered long ago
    await scale(api, job, most=1, request_id=third)
    await scale(api, job, most=2)
    assert bounds(await scale(api, job, most=1, request_id=third)) == (1, 2)
    error = await refusal(scale(api, job, most=2, request_id=third))
    assert error.code() is Code.INVALID_ARGUMENT and "make a new UUID4" in (error.details() or "")


async def test_a_refused_request_may_be_sent_again_with_its_id(api: Running) -> None:
    job, number = await submitted(api), str(uuid.uuid4())
    await refusal(resume(api, job, request_id=number))
    await pause(api, job)
    assert (await resume(api, job, request_id=number)).state == S.QUEUED


async def test_an_etag_of_before_somebody_elses_change_is_refused(api: Running) -> None:
    job = await submitted(api)
    seen = (await api.get(f"jobs/{job}")).etag
    async with api.agent() as agent:
        await agent.sync()
        await begun(api, agent, job)
        await agent.say(job, 1, **ended(Outcome.LOST, "worker 1 was killed", 50))
        await begun(api, agent, job, 2)
        scaled = await scale(api, job, most=3, etag=seen)  # what its runs do changes nothing
        for call in (scale(api, job, most=4, etag=seen), pause(api, job, etag=seen)):
            error = await refusal(call)
            assert error.code() is Code.ABORTED and "look at it again" in (error.details() or "")
        assert bounds(await api.get(f"jobs/{job}")) == (1, 3)
        pausing = await pause(api, job, etag=scaled.etag)
        await agent.say(job, 2, **ended(Outcome.PAUSED, "paused at step 60", 60))
        assert (await api.get(f"jobs/{job}")).etag == pausing.etag
        resumed = await resume(api, job, etag=pausing.etag)
        assert len({seen, scaled.etag, pausing.etag, resumed.etag}) == 4


async def test_another_arithmetic_is_not_gone_on_with(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await submitted(api)
    await pause(api, job)
    monkeypatch.setattr(lifecycle, "ARITHMETIC_VERSION", 2)
    error = await refusal(resume(api, job))
    assert error.code() is Code.FAILED_PRECONDITION and "this server has version 2" in (error.details() or "")
    assert (await refusal(resume(api, job, accept_new_arithmetic=True))).code() is Code.UNIMPLEMENTED
    assert (await api.get(f"jobs/{job}")).state == S.PAUSED


async def test_a_pause_is_no_time_without_progress(tmp_path: Path) -> None:
    now = [wall_clock()]
    async with running(tmp_path, clock=lambda: now[0]) as api:
        job = await submitted(api)
        async with api.agent() as agent:
            await agent.sync()
            await begun(api, agent, job)
            await pause(api, job)
            await agent.say(job, 1, **ended(Outcome.PAUSED, "paused at step 0"))
            now[0] += int(limits.NO_PROGRESS_SECONDS + 1) * SECOND
            await resume(api, job)
            await agent.wish(job, 2)
            await agent.say(job, 2, **ended(Outcome.LOST, "worker 1 was killed", cause=Outcome.OUTSIDE))
            await agent.wish(job, 3)


async def test_a_resumed_job_queues_behind_the_others(api: Running) -> None:
    job, other = await submitted(api), await submitted(api)
    await pause(api, job)
    await resume(api, job)
    async with api.agent() as agent:
        await agent.sync(slots=2)
        await agent.wish(other)
        assert (await api.get(f"jobs/{job}")).status_detail.startswith("place 1 of 1 in the queue")
