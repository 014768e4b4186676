"""Jobs of kind GRADIENT_CHECK in the API server: one worker, a table as the result, the same queue, cancel and recovery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lockstep.contract.errors import UserError
from lockstep.internal.v1 import agent_service_pb2 as pb
from lockstep.v1 import training_job_service_pb2
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import GradientCheckResult, Progress, Result, TensorGradientCheck, TrainingJob
from services import limits
from services.clock import SECOND, wall_clock
from services.jobs.submission import Version, prepare
from tests.services.fake_agent import ended, started
from tests.services.running import DEADLINE_S, METADATA, Running, refusal, running
from tests.services.specs import DIGEST, DIGITS, spec

pytestmark = pytest.mark.anyio
S = TrainingJob.State
Outcome = pb.RunEnded
FOUND = GradientCheckResult(
    tensors=[
        TensorGradientCheck(
            name="0.dense.weight",
            shape=[64, 128],
            elements=8192,
            checked=49,
            skipped=1,
            worst_relative_error=0.5,
            worst_index=[3, 9],
            backward=2.0,
            numerical=1.0,
            float32_deviation=1e-7,
        )
    ],
    worst_relative_error=0.5,
    tolerance=1e-6,
    float32_tolerance=1e-2,
    rows=16,
)


async def submitted(api: Running, job: JobSpec | None = None, **options: Any) -> TrainingJob:
    wanted = TrainingJob(spec=job or spec(), kind=TrainingJob.GRADIENT_CHECK)
    request = training_job_service_pb2.CreateTrainingJobRequest(training_job=wanted, **options)
    answer: TrainingJob = await api.jobs.CreateTrainingJob(request, metadata=METADATA, timeout=DEADLINE_S)
    return answer


def checked(tensors: int) -> dict[str, Any]:
    """The run came so far."""
    return {"progress": pb.RunProgress(progress=Progress(step=tensors, total_steps=4, workers=1))}


def found(outcome: pb.RunEnded.Outcome.ValueType, reason: str) -> dict[str, Any]:
    """The run's last word, with its table."""
    result = Result(fingerprint="f" * 64, gradient_check=FOUND)
    return {"ended": pb.RunEnded(outcome=outcome, reason=reason, last_step=4, result=result)}


async def test_from_queue_to_table(api: Running) -> None:
    job = await submitted(api)
    assert (job.kind, job.state, job.plan.total_steps, job.plan.checkpoint_bytes) == (
        TrainingJob.GRADIENT_CHECK,
        S.QUEUED,
        4,
        0,
    )
    assert (job.spec.workers.min, job.spec.workers.max) == (1, 1)
    name = job.name.removeprefix("jobs/")
    async with api.agent() as agent:
        await agent.sync(slots=3)
        order = (await agent.wish(name)).order
        assert (order.kind, order.workers, order.plan.total_steps) == (TrainingJob.GRADIENT_CHECK, 1, 4)
        await agent.say(name, 1, **started())
        await agent.say(name, 1, **checked(2))
        shown = await api.get(job.name)
        assert (shown.state, shown.progress.step, shown.HasField("result")) == (S.RUNNING, 2, False)
        await agent.say(name, 1, **found(Outcome.SUCCEEDED, "all are right"))
        await agent.until(lambda: not agent.wishes.runs)
    done = await api.get(job.name)
    assert (done.state, done.kind, done.result.gradient_check) == (S.SUCCEEDED, TrainingJob.GRADIENT_CHECK, FOUND)
    assert not done.result.checkpoints and done.result.fingerprint == "f" * 64


async def test_a_failed_check_keeps_its_table_and_says_why(api: Running) -> None:
    job = await submitted(api)
    name = job.name.removeprefix("jobs/")
    async with api.agent() as agent:
        await agent.sync()
        await agent.wish(name)
        await agent.say(name, 1, **started())
        await agent.say(name, 1, **found(Outcome.FAILED, "the gradient of 0.dense.weight at [3, 9] is wrong"))
    done = await api.get(job.name)
    assert (done.state, done.result.gradient_check) == (S.FAILED, FOUND)
    assert done.status_detail == "the gradient of 0.dense.weight at [3, 9] is wrong"


async def test_a_lost_run_is_followed_by_a_new_one_and_its_tensors_are_no_progress(api: Running) -> None:
    name = (await submitted(api)).name.removeprefix("jobs/")
    async with api.agent() as agent:
        await agent.sync()
        for run in range(1, limits.SAME_CAUSE_RUNS + 1):
            assert (await agent.wish(name, run)).order.workers == 1
            await agent.say(name, run, **started())
            await agent.say(name, run, **checked(2))
            await agent.say(name, run, **ended(Outcome.LOST, "worker 0 crashed", 2, Outcome.OWN))
    shown = await api.get(f"jobs/{name}")
    assert shown.state == S.FAILED and "so ended 3 runs" in shown.status_detail and not shown.HasField("result")


async def test_kills_from_outside_at_the_same_tensor_end_it_by_time(tmp_path: Path) -> None:
    now = [wall_clock()]
    async with running(tmp_path, clock=lambda: now[0]) as api:
        name = (await submitted(api)).name.removeprefix("jobs/")
        async with api.agent() as agent:
            await agent.sync()
            for run in (1, 2, 3):
                await agent.wish(name, run)
                await agent.say(name, run, **started())
                await agent.say(name, run, **checked(2))
                await agent.say(name, run, **ended(Outcome.LOST, "worker 0 was killed", 2, Outcome.OUTSIDE))
                now[0] += int(0.4 * limits.NO_PROGRESS_SECONDS) * SECOND
            await agent.wish(name, 4)
            await agent.say(name, 4, **started())
            await agent.say(name, 4, **checked(2))
            await agent.say(name, 4, **ended(Outcome.LOST, "worker 0 was killed", 2, Outcome.OUTSIDE))
        shown = await api.get(f"jobs/{name}")
        assert shown.state == S.FAILED and "no run came further for 72 minutes" in shown.status_detail


async def test_it_is_cancelled_as_a_training_is(api: Running) -> None:
    name = (await submitted(api)).name.removeprefix("jobs/")
    async with api.agent() as agent:
        await agent.sync()
        await agent.wish(name)
        await agent.say(name, 1, **started())
        assert (await api.cancel(f"jobs/{name}")).state == S.CANCELLING
        await agent.until(lambda: agent.wishes.runs[0].intent == pb.RunWish.CANCEL)
        await agent.say(name, 1, **ended(Outcome.CANCELLED, "cancelled after 2 of 4 tensors", 2))
    assert (await api.get(f"jobs/{name}")).state == S.CANCELLED


async def test_the_kind_is_part_of_what_was_asked(api: Running) -> None:
    identity = "00000000-0000-4000-8000-000000000001"
    first = await submitted(api, request_id=identity)
    assert (await submitted(api, request_id=identity)).name == first.name
    assert "request_id" in str((await refusal(api.create(request_id=identity))).details())
    draft = await submitted(api, validate_only=True)
    assert (draft.kind, draft.plan.total_steps) == (TrainingJob.GRADIENT_CHECK, 4)
    # It is the same function that is checked and trained.
    assert draft.arithmetic_digest == (await api.create()).arithmetic_digest


async def test_what_is_wrong_with_the_job_is_refused_as_for_a_training(api: Running) -> None:
    error = await refusal(submitted(api, spec(optimizer={"sgd": {"learning_rate": -0.1}})))
    assert "optimizer.sgd.learning_rate" in str(error.details())


@pytest.mark.parametrize("kind", [TrainingJob.TRAINING, TrainingJob.GRADIENT_CHECK])
def test_a_job_that_learns_nothing_is_refused(kind: TrainingJob.Kind.ValueType) -> None:
    schema = type(DIGITS)()
    schema.CopyFrom(DIGITS)
    schema.input_shape[:] = [10]
    idle = spec(model={"layers": [{"relu": {}}]})
    with pytest.raises(UserError) as caught:
        prepare(idle, Version("digits", DIGEST, schema), kind=kind)
    assert [(item.place, item.reason) for item in caught.value.violations] == [("model.layers", "NOTHING_LEARNED")]


def test_the_plan_counts_learned_tensors_and_their_doubles() -> None:
    wide = spec(model={"layers": [{"dense": {"units": 9}}, {"batch_norm": {}}, {"dense": {"units": 10}}]}, workers={"max": 1})
    version = Version("digits", DIGEST, DIGITS)
    training, check = prepare(wide, version).plan, prepare(wide, version, kind=TrainingJob.GRADIENT_CHECK).plan
    assert check.total_steps == 6  # the two running statistics of the batch normalization are not learned
    assert check.worker_memory_bytes == training.worker_memory_bytes + 16 * training.parameters
    assert check.parameters == training.parameters
