"""Pause, resume and scale: what is answered, what the agent is told, and what becomes of the slots."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest

from lockstep.contract.digests import arithmetic_digest
from lockstep.internal.v1 import agent_service_pb2 as pb2
from lockstep.v1 import training_job_service_pb2 as pb
from lockstep.v1.cluster_service_pb2 import GetClusterRequest
from lockstep.v1.job_spec_pb2 import Workers
from lockstep.v1.training_job_pb2 import TrainingJob
from services import limits
from services.clock import SECOND, wall_clock
from services.jobs import lifecycle
from tests.services.fake_agent import FakeAgent, checkpoint, ended, progress, started
from tests.services.running import METADATA, Running, refusal, running
from tests.services.specs import DIGEST, spec

pytestmark = pytest.mark.anyio
S, Code, Outcome = TrainingJob.State, grpc.StatusCode, pb2.RunEnded


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
        assert await slots_in_use(api) == 0


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


async def test_a_job_can_be_scaled_while_it_waits_and_while_it_is_paused(api: Running) -> None:
    job = await submitted(api, 2, 2)
    before = await api.get(f"jobs/{job}")
    waiting = await scale(api, job, least=1)
    assert bounds(waiting) == (1, 2) and waiting.state == S.QUEUED
    assert waiting.plan.worker_memory_bytes > before.plan.worker_memory_bytes  # one worker holds what two shared
    assert waiting.arithmetic_digest == before.arithmetic_digest == arithmetic_digest(waiting.spec, DIGEST, 1)
    await pause(api, job)
    assert bounds(await scale(api, job, 3, 4)) == (3, 4)
    assert bounds(await resume(api, job, workers=Workers(min=1, max=3))) == (1, 3)
    async with api.agent() as agent:
        await agent.sync(slots=4)
        wish = await agent.wish(job)
        assert wish.order.workers == 3 and wish.order.spec.workers == Workers(min=1, max=3)
        await agent.say(job, 1, **ended(Outcome.FAILED, "enough"))
    notices = [event.notice for event in await api.watch(f"jobs/{job}") if event.HasField("notice")]
    assert {notice.reason for notice in notices} == {"SCALED"}
    assert [notice.text for notice in notices] == [
        "scaled to 1 to 2 workers; before it was 2 workers",
        "scaled to 3 to 4 workers; before it was 1 to 2 workers",
        "scaled to 1 to 3 workers; before it was 3 to 4 workers",
    ]


@pytest.mark.parametrize(
    ("workers", "place", "words"),
    [
        (Workers(min=5), "workers.min", "it must be at most workers.max, 3; give max as well"),
        (Workers(max=1), "workers.max", "it must be at least workers.min, 2; give min as well"),
        (Workers(min=3, max=2), "workers.min", "it must be at most workers.max, 2"),
        (Workers(min=5, max=8), "workers.min", "a mini-batch has 4 shards and a worker holds at least one; ask for at most 4"),
        (Workers(min=0), "workers.min", "it must be at least 1"),
        (Workers(max=65), "workers.max", "it must be at most 64"),
        (Workers(), "workers", "give min, max or both"),
    ],
)
async def test_bounds_are_checked_as_at_submission(api: Running, workers: Workers, place: str, words: str) -> None:
    job = await submitted(api, 2, 3)
    await pause(api, job)
    for call in (scale_to(api, job, workers), resume(api, job, workers=workers)):
        error = await refusal(call)
        assert error.code() is Code.INVALID_ARGUMENT
        assert (error.details() or "").startswith(f"{place}: ") and words in (error.details() or "")
    after = await api.get(f"jobs/{job}")
    assert bounds(after) == (2, 3) and after.state == S.PAUSED


async def test_a_cap_is_said_and_forgotten_again(api: Running) -> None:
    job = await submitted(api, 1, 8)
    told = list((await api.get(f"jobs/{job}")).warnings)
    assert told == ["workers.max is 4, not 8: a mini-batch has 4 shards, and a worker holds at least one"]
    again = await scale(api, job, most=6)
    assert list(again.warnings) == [told[0].replace("8", "6", 1)] and bounds(again) == (1, 4)
    assert not (await scale(api, job, most=3)).warnings


async def test_a_gradient_check_stays_on_one_worker(api: Running) -> None:
    request = pb.CreateTrainingJobRequest(training_job=TrainingJob(spec=spec(), kind=TrainingJob.GRADIENT_CHECK))
    created = await api.jobs.CreateTrainingJob(request, metadata=METADATA)
    job = created.name.removeprefix("jobs/")
    error = await refusal(scale(api, job, most=2))
    assert error.code() is Code.INVALID_ARGUMENT and "runs on one worker" in (error.details() or "")
    assert (await pause(api, job)).state == S.PAUSED and (await resume(api, job)).state == S.QUEUED


async def test_a_run_that_cannot_change_keeps_its_slots_and_the_answer_says_so(api: Running) -> None:
    job = await submitted(api, 1, 3)
    async with api.agent() as agent:
        await agent.sync(slots=4)
        await begun(api, agent, job, workers=3)
        scaled = await scale(api, job, most=2)
        assert scaled.status_detail == (
            "has 3 workers; from its next run on 1 to 2 workers: pause and resume it to have that now"
        )
        await agent.until(lambda: agent.wishes.runs[0].order.workers == 2)
        await agent.say(job, 1, **progress(40))
        assert await slots_in_use(api) == 3
        assert "from its next run on 4 workers" in (await scale(api, job, 4, 4)).status_detail
        await agent.until(lambda: agent.wishes.runs[0].order.workers == 3)
        assert await slots_in_use(api) == 3
        await agent.say(job, 1, **ended(Outcome.LOST, "worker 1 was killed", 50))
        assert (await agent.wish(job, 2)).order.workers == 4
        assert (await api.get(f"jobs/{job}")).status_detail == "run 2 starts with 4 workers"


async def test_a_run_that_has_not_started_yet_starts_with_fewer(api: Running) -> None:
    job = await submitted(api, 1, 4)
    async with api.agent() as agent:
        await agent.sync(slots=4)
        await agent.wish(job)
        await scale(api, job, most=2)
        await agent.until(lambda: agent.wishes.runs[0].order.workers == 2)
        await begun(api, agent, job, workers=2)
        await until_in_use(api, 2)


async def until_in_use(api: Running, slots: int) -> None:
    async with asyncio.timeout(5):
        while await slots_in_use(api) != slots:
            await asyncio.sleep(0.01)


async def test_a_run_that_can_change_gives_slots_back_and_takes_free_ones(api: Running) -> None:
    job, other = await submitted(api, 1, 4), await submitted(api, 2, 2)
    async with api.agent() as agent:
        await agent.sync(slots=4)
        await begun(api, agent, job, workers=4, resizable=True)
        assert (await api.get(f"jobs/{job}")).runs[0].resizable
        scaled = await scale(api, job, most=2)
        assert scaled.status_detail == "goes on with 2 workers after the stretch under way; it has 4"
        await agent.until(lambda: agent.wishes.runs[0].order.workers == 2)
        assert (await api.get(f"jobs/{other}")).state == S.QUEUED  # not before the workers are gone
        await begun(api, agent, job, workers=2, resizable=True)
        await begun(api, agent, other)
        assert (await api.get(f"jobs/{job}")).status_detail == "" and await slots_in_use(api) == 4
        third = await submitted(api, 2, 2)
        scaled = await scale(api, job, most=3)
        assert scaled.status_detail == "has 2 workers and may have 3; it gets more as slots become free"
        await agent.say(other, 1, **ended(Outcome.SUCCEEDED, "done", 240))
        await agent.wish(third)  # who waits comes before who grows
        assert (await agent.wish(job)).order.workers == 2
        await agent.say(third, 1, **ended(Outcome.SUCCEEDED, "done", 240))
        await agent.until(lambda: agent.wishes.runs[0].order.workers == 3)
        assert await slots_in_use(api) == 3
        await begun(api, agent, job, workers=3, resizable=True)
        assert (await api.get(f"jobs/{job}")).status_detail == ""
        await agent.say(job, 1, **ended(Outcome.SUCCEEDED, "done", 240))
        await until_in_use(api, 0)


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
