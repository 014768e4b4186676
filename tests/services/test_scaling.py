"""Scale: bounds are checked as at submission; who has slots, who gets some, and what people are told."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.contract.arithmetic import ARITHMETIC_VERSION
from lockstep.contract.digests import arithmetic_digest
from lockstep.contract.errors import UserError
from lockstep.internal.v1 import agent_service_pb2 as pb2
from lockstep.v1 import training_job_service_pb2 as pb
from lockstep.v1.job_spec_pb2 import Workers
from lockstep.v1.training_job_pb2 import TrainingJob
from services.jobs.scaling import rescale
from services.jobs.submission import Version, prepare
from tests.services.fake_agent import ended, progress
from tests.services.running import METADATA, Running, refusal
from tests.services.specs import DIGEST, DIGITS, spec
from tests.services.steering import begun, bounds, pause, resume, scale, scale_to, slots_in_use, submitted, until_in_use

pytestmark = pytest.mark.anyio
S, Code, Outcome = TrainingJob.State, grpc.StatusCode, pb2.RunEnded
BOUND = st.none() | st.integers(1, 64)


@given(BOUND, BOUND)
def test_whatever_is_asked_the_bounds_stay_bounds_and_the_job_the_same(least: int | None, most: int | None) -> None:
    made = prepare(spec(workers={"min": 2, "max": 3}), Version("digits", DIGEST, DIGITS))
    asked = Workers(min=least, max=most)
    try:
        capped = rescale(made.spec, made.plan, DIGITS, asked)
    except UserError as error:
        assert error.violations[0].place.startswith("workers") and error.violations[0].remedy
        assert least is most is None or (least or 2) > min(most or 3, 4)
        return
    assert made.spec.workers == Workers(min=least or 2, max=min(most or 3, 4)) and bool(capped) == ((most or 3) > 4)
    assert arithmetic_digest(made.spec, DIGEST, ARITHMETIC_VERSION) == made.arithmetic_digest


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
    assert list((await scale(api, job, least=2)).warnings) == told  # it still holds
    again = await scale(api, job, most=6)
    assert list(again.warnings) == [told[0].replace("8", "6", 1)] and bounds(again) == (2, 4)
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
        scaled = await scale(api, job, most=2)
        assert scaled.status_detail.endswith("; its workers are being started; once they are it may have 1 to 2 workers")
        await agent.until(lambda: agent.wishes.runs[0].order.workers == 2)
        await begun(api, agent, job, workers=2)
        await until_in_use(api, 2)


async def test_a_run_that_can_change_gives_slots_back_and_takes_free_ones(api: Running) -> None:
    job, other = await submitted(api, 1, 4), await submitted(api, 2, 2)
    async with api.agent() as agent:
        await agent.sync(slots=4)
        await begun(api, agent, job, workers=4, resizable=True)
        assert (await api.get(f"jobs/{job}")).runs[0].resizable
        scaled = await scale(api, job, most=2)
        assert scaled.status_detail == "goes on with 2 workers after the stretch under way; it has 4"
        await agent.until(lambda: agent.wishes.runs[0].order.workers == 2)
        assert agent.wishes.runs[0].order.spec.workers == Workers(min=1, max=2)
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
