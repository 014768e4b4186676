"""Jobs of kind VERIFY in the API server: what they are asked, what is refused, what they keep from being deleted."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from sqlalchemy import Connection

from lockstep.internal.v1 import agent_service_pb2 as pb
from lockstep.v1 import training_job_service_pb2
from lockstep.v1.training_job_pb2 import Progress, Replay, ReplayedStep, ReplayResult, Result, TrainingJob
from services.store import datasets as dataset_rows
from services.store import jobs as rows
from tests.services.fake_agent import FakeAgent, checkpoint, ended, progress, started
from tests.services.running import DEADLINE_S, METADATA, Running, refusal
from tests.services.specs import DIGEST, spec
from tests.services.steering import begun, pause, resume, scale, submitted

pytestmark = pytest.mark.anyio
S, Code = TrainingJob.State, grpc.StatusCode
Outcome = pb.RunEnded
SAID = "steps 121 to 240 replayed: the weights are those of the checkpoint of step 240"
FOUND = ReplayResult(
    start_step=120, steps=[ReplayedStep(step=240, weights_sha256="a" * 64, checkpoint_weights_sha256="a" * 64)]
)


async def replayed(api: Running, job: str = "jobs/trained", replay: Replay | None = None, **options: Any) -> TrainingJob:
    """Submits a replay."""
    wanted = TrainingJob(kind=TrainingJob.VERIFY, replay=replay or Replay(job=job))
    request = training_job_service_pb2.CreateTrainingJobRequest(training_job=wanted, **options)
    answer: TrainingJob = await api.jobs.CreateTrainingJob(request, metadata=METADATA, timeout=DEADLINE_S)
    return answer


async def trained(agent: FakeAgent, api: Running, job_id: str = "trained", steps: tuple[int, ...] = (60, 120, 240)) -> None:
    """A job that has ended, with checkpoints of these steps."""
    await api.create(training_job_id=job_id)
    await agent.wish(job_id)
    await agent.say(job_id, 1, **started())
    await agent.say(job_id, 1, **progress(240))
    for step in steps:
        await agent.say(job_id, 1, **checkpoint(step))
    await agent.say(job_id, 1, **ended(Outcome.SUCCEEDED, "", 240))
    await agent.until(lambda: not agent.wishes.runs)


async def delete(api: Running, name: str) -> None:
    request = training_job_service_pb2.DeleteTrainingJobRequest(name=name)
    await api.jobs.DeleteTrainingJob(request, metadata=METADATA, timeout=DEADLINE_S)


async def change(api: Running, job_id: str, **values: Any) -> None:
    """Sets columns of a job behind the server's back."""

    def store(connection: Connection) -> None:
        rows.change(connection, job_id, **values)

    await api.server.store.run(store)


async def test_from_queue_to_sentence(api: Running) -> None:
    async with api.agent() as agent:
        await agent.sync(slots=3)
        await trained(agent, api)
        original = await api.get("jobs/trained")
        job = await replayed(api)
        assert (job.kind, job.state) == (TrainingJob.VERIFY, S.QUEUED) and job.name.startswith("jobs/verify-")
        assert job.replay == job.plan.replay == Replay(job="jobs/trained", step=240, start_step=120)
        # It computes what the replayed job computes, on its nodes, and writes no checkpoint.
        assert (job.arithmetic_digest, job.dataset_digest) == (original.arithmetic_digest, original.dataset_digest)
        assert (job.plan.total_steps, job.plan.checkpoint_bytes) == (240, 0)
        original.spec.name = job.spec.name
        assert job.spec == original.spec
        name = job.name.removeprefix("jobs/")
        order = (await agent.wish(name)).order
        assert (order.kind, order.fingerprint, order.workers) == (TrainingJob.VERIFY, "f" * 64, 2)
        assert order.plan.replay == job.replay
        await agent.say(name, 1, **started(120))
        error = await refusal(delete(api, "jobs/trained"))
        assert "reads its checkpoints" in str(error.details()) and job.name in str(error.details())
        result = Result(fingerprint="f" * 64, replay=FOUND)
        end = pb.RunEnded(outcome=Outcome.SUCCEEDED, reason=SAID, last_step=240, result=result)
        await agent.say(name, 1, ended=end)
        await agent.until(lambda: not agent.wishes.runs)
        done = await api.get(job.name)
        assert (done.state, done.status_detail, done.result.replay) == (S.SUCCEEDED, SAID, FOUND)
        assert not done.result.checkpoints and done.replay == job.replay
        await delete(api, "jobs/trained")
        assert (await api.get(job.name)).result.replay == FOUND


async def test_a_failed_one_keeps_what_it_found(api: Running) -> None:
    async with api.agent() as agent:
        await agent.sync()
        await trained(agent, api)
        name = (await replayed(api)).name.removeprefix("jobs/")
        await agent.wish(name)
        await agent.say(name, 1, **started(120))
        end = pb.RunEnded(outcome=Outcome.FAILED, reason="step 240 differs", last_step=240, result=Result(replay=FOUND))
        await agent.say(name, 1, ended=end)
    done = await api.get(f"jobs/{name}")
    assert (done.state, done.status_detail, done.result.replay) == (S.FAILED, "step 240 differs", FOUND)


async def test_which_steps(api: Running) -> None:
    async with api.agent() as agent:
        await agent.sync()
        await trained(agent, api)
    for asked, resolved in [
        (Replay(step=60), Replay(step=60, start_step=0)),
        (Replay(step=120), Replay(step=120, start_step=60)),
        (Replay(step=240, hashed_steps=[119, 61, 119]), Replay(step=240, hashed_steps=[61, 119], start_step=60)),
        (Replay(hashed_steps=[0]), Replay(hashed_steps=[0], start_step=0)),
        (Replay(hashed_steps=[120, 130]), Replay(hashed_steps=[120, 130], start_step=60)),
        (Replay(hashed_steps=[130], start_step=7), Replay(hashed_steps=[130], start_step=120)),
    ]:
        asked.job = resolved.job = "jobs/trained"
        draft = await replayed(api, replay=asked, validate_only=True)
        assert (draft.replay, draft.plan.replay, draft.kind) == (resolved, resolved, TrainingJob.VERIFY)


async def test_it_is_cancelled_and_tried_again_as_a_training_is(api: Running) -> None:
    async with api.agent() as agent:
        await agent.sync()
        await trained(agent, api)
        name = (await replayed(api)).name.removeprefix("jobs/")
        await agent.wish(name, 1)
        await agent.say(name, 1, **started(120))
        message = Progress(step=130, total_steps=240, workers=1)
        await agent.say(name, 1, progress=pb.RunProgress(progress=message))
        await agent.say(name, 1, **ended(Outcome.LOST, "worker 0 crashed", 130, Outcome.OWN))
        await agent.wish(name, 2)
        await agent.say(name, 2, **started(120))
        assert (await api.cancel(f"jobs/{name}")).state == S.CANCELLING
        await agent.until(lambda: agent.wishes.runs[0].intent == pb.RunWish.CANCEL)
        await agent.say(name, 2, **ended(Outcome.CANCELLED, "cancelled after step 125", 125))
    assert (await api.get(f"jobs/{name}")).state == S.CANCELLED


async def test_a_paused_job_rests_as_long_as_it_is_replayed(api: Running) -> None:
    async with api.agent() as agent:
        await agent.sync(slots=3)
        job = await submitted(api)
        await begun(api, agent, job)
        await agent.say(job, 1, **checkpoint(120))
        await pause(api, job)
        await agent.say(job, 1, **ended(Outcome.PAUSED, "paused at step 120", 120))
        replay = (await replayed(api, f"jobs/{job}")).name
        error = await refusal(resume(api, job))
        assert error.code() is Code.FAILED_PRECONDITION and replay in (error.details() or "")
        assert (await api.get(f"jobs/{job}")).state == S.PAUSED
        error = await refusal(scale(api, replay.removeprefix("jobs/"), most=1))
        assert error.code() is Code.INVALID_ARGUMENT and "only a training job" in (error.details() or "")
        await agent.wish(replay.removeprefix("jobs/"))
        await agent.say(replay.removeprefix("jobs/"), 1, **ended(Outcome.SUCCEEDED, SAID, 120))
        assert (await resume(api, job)).state in (S.QUEUED, S.STARTING)


async def test_what_cannot_be_replayed(api: Running) -> None:
    async with api.agent() as agent:
        await agent.sync()
        await trained(agent, api)
        check = TrainingJob(spec=spec(), kind=TrainingJob.GRADIENT_CHECK)
        request = training_job_service_pb2.CreateTrainingJobRequest(training_job=check, training_job_id="check")
        await api.jobs.CreateTrainingJob(request, metadata=METADATA)
        await api.cancel("jobs/check")
        await api.create(training_job_id="early")
        assert "replay.job: got jobs/early; it is " in await said(api, job="jobs/early")
        await api.cancel("jobs/early")
        await agent.wish("early")
        await agent.say("early", 1, **ended(Outcome.CANCELLED, "cancelled"))
    assert "replay.job: got jobs/none; there is no such job" in await said(api, job="jobs/none")
    assert "it is a GRADIENT_CHECK; only a TRAINING" in await said(api, job="jobs/check")
    assert "has no checkpoint to compare with" in await said(api, job="jobs/early")
    # Without a checkpoint it can still be replayed from the seed.
    early = await replayed(api, replay=Replay(job="jobs/early", hashed_steps=[3]), validate_only=True)
    assert early.replay.start_step == 0
    missing = await said(api, replay=Replay(job="jobs/trained", step=100))
    assert missing == "replay.step: got 100; there is no checkpoint of that step; kept are 60, 120, 240"
    assert "the job has 240 steps" in await said(api, replay=Replay(job="jobs/trained", hashed_steps=[241]))
    assert "it must have at most 1,000" in await said(api, replay=Replay(job="jobs/trained", hashed_steps=range(1001)))
    assert "must match" in await said(api, job="trained")
    await change(api, "trained", arithmetic_version=99)
    assert "version 99 of the arithmetic" in await said(api)


async def test_kind_spec_and_replay_must_fit(api: Running) -> None:
    create, plan = api.jobs.CreateTrainingJob, training_job_service_pb2.CreateTrainingJobRequest
    for job, words in [
        (TrainingJob(kind=TrainingJob.VERIFY), "replay.job: a job of kind VERIFY needs"),
        (TrainingJob(kind=TrainingJob.VERIFY, replay=Replay(job="jobs/a"), spec=spec()), "spec: a job of kind VERIFY takes"),
        (TrainingJob(spec=spec(), replay=Replay(job="jobs/a")), "replay: only a job of kind VERIFY"),
        (TrainingJob(spec=spec(), kind=9), "kind: got 9; it must be one of TRAINING"),  # type: ignore[arg-type]
    ]:
        error = await refusal(create(plan(training_job=job), metadata=METADATA))
        assert words in str(error.details())


async def test_without_its_dataset_nothing_can_be_replayed(api: Running) -> None:
    async with api.agent() as agent:
        await agent.sync()
        await trained(agent, api)
    await api.server.store.run(lambda connection: dataset_rows.remove(connection, "digits"))
    assert f"datasets/digits@{DIGEST[:8]}, was deleted" in await said(api)


async def said(api: Running, **asked: Any) -> str:
    """The refusal of a replay."""
    return str((await refusal(replayed(api, **asked))).details())
