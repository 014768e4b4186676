"""The agent's stream: events once and in order, wishes whole, fencing, lost runs, bounds on trying again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from lockstep.internal.v1 import agent_service_pb2 as pb
from lockstep.v1 import training_job_service_pb2
from lockstep.v1.cluster_service_pb2 import GetClusterRequest
from lockstep.v1.training_job_pb2 import JobEvent, Notice, TrainingJob
from services import limits
from services.clock import SECOND, wall_clock
from services.runs import apply as apply_module
from tests.services.fake_agent import checkpoint, ended, points, progress, started
from tests.services.running import METADATA, Running, running
from tests.services.specs import spec

pytestmark = pytest.mark.anyio
S = TrainingJob.State
Outcome = pb.RunEnded


async def submitted(api: Running, **options: object) -> str:
    return (await api.create(spec(**options))).name.removeprefix("jobs/")


def of_kind(events: list[JobEvent], kind: str) -> list[JobEvent]:
    return [event for event in events if event.WhichOneof("event") == kind]


async def test_before_the_first_agent_there_is_no_time_since_when_it_is_away(api: Running) -> None:
    async def cluster() -> tuple[bool, bool]:
        found = await api.cluster.GetCluster(GetClusterRequest(), metadata=METADATA)
        return found.agent_connected, found.HasField("agent_since")

    assert await cluster() == (False, False)
    async with api.agent() as agent:
        await agent.sync()
        assert await cluster() == (True, True)
    async with asyncio.timeout(5):
        while (await cluster())[0]:
            await asyncio.sleep(0.01)
    assert await cluster() == (False, True)


async def test_a_job_from_queue_to_success(api: Running) -> None:
    job = await submitted(api)
    async with api.agent() as agent:
        await agent.sync(slots=3)
        wish = await agent.wish(job)
        assert (wish.intent, wish.order.run_number, wish.order.workers) == (pb.RunWish.RUN, 1, 2)
        assert wish.order.spec.dataset.startswith("datasets/digits@") and wish.order.plan.total_steps == 240
        assert (await api.get(f"jobs/{job}")).state == S.STARTING
        await agent.say(job, 1, **started(workers=2))
        assert (await api.get(f"jobs/{job}")).state == S.RUNNING
        for step in (10, 20):
            await agent.say(job, 1, **progress(step, rows=step * 128))
            await agent.say(job, 1, **points(step, loss=1.0 / step))
        await agent.say(job, 1, **checkpoint(240, 0.1))
        await agent.say(job, 1, **ended(Outcome.SUCCEEDED, "all steps", 240))
        await agent.until(lambda: not agent.wishes.runs)
        cluster = await api.cluster.GetCluster(GetClusterRequest(), metadata=METADATA)
        assert (cluster.agent_connected, cluster.slots, cluster.slots_in_use) == (True, 3, 0)
        assert cluster.HasField("agent_since")
    done = await api.get(f"jobs/{job}")
    assert (done.state, done.status_detail, done.progress.step) == (S.SUCCEEDED, "", 20)
    assert done.result.step == 240 and [item.step for item in done.result.checkpoints] == [240]
    assert done.runs[0].last_step == 240 and done.runs[0].computed_rows == 2560 and done.HasField("end_time")
    events = await api.watch(f"jobs/{job}")
    assert [event.state_change.state for event in of_kind(events, "state_change")] == [
        S.QUEUED,
        S.STARTING,
        S.RUNNING,
        S.SUCCEEDED,
    ]
    assert [event.points.step for event in of_kind(events, "points")] == [10, 20]


async def test_an_event_counts_once_and_one_of_an_older_run_not_at_all(api: Running) -> None:
    job = await submitted(api)
    async with api.agent() as agent:
        await agent.sync()
        await agent.wish(job)
        await agent.say(job, 1, **started())
        await agent.say(job, 1, **points(1, loss=0.5))
        await agent.say(job, 1, sequence=2, **points(1, loss=0.7))  # sent again, whatever it holds
        await agent.say(job, 1, **ended(Outcome.LOST, "worker 1 crashed", 5))
        assert (await agent.wish(job, 2)).order.run_number == 2
        await agent.say(job, 1, sequence=4, **points(2, loss=9.0))
        await agent.say(job, 1, sequence=5, **ended(Outcome.SUCCEEDED, "late", 240))
        await agent.say(job, 2, **started(step=3))
        assert (await api.get(f"jobs/{job}")).state == S.RUNNING, "an older run has ended the job"
        await agent.say(job, 2, **ended(Outcome.FAILED, "bad data", 4))
    events = await api.watch(f"jobs/{job}")
    assert [point.value for event in of_kind(events, "points") for point in event.points.points] == [0.5]
    assert not of_kind(events, "notice")


async def test_a_point_that_differs_is_corruption(api: Running) -> None:
    job = await submitted(api)
    async with api.agent() as agent:
        await agent.sync()
        await agent.wish(job)
        await agent.say(job, 1, **started())
        await agent.say(job, 1, **points(1, loss=0.5))
        await agent.say(job, 1, **points(1, loss=0.6, learning_rate=0.1))
        await agent.say(job, 1, **ended(Outcome.FAILED, "enough"))
    events = await api.watch(f"jobs/{job}")
    (notice,) = of_kind(events, "notice")
    assert notice.notice.reason == "CORRUPTION_DETECTED" and notice.notice.severity == Notice.ERROR
    assert [[point.name for point in event.points.points] for event in of_kind(events, "points")] == [
        ["loss"],
        ["learning_rate"],
    ]


@pytest.mark.parametrize("restarted", [False, True])
async def test_time_without_an_agent_or_a_server_is_no_time_without_progress(tmp_path: Path, restarted: bool) -> None:
    now = [wall_clock()]

    async def after_two_hours(api: Running, job: str) -> TrainingJob:
        now[0] += int(2 * limits.NO_PROGRESS_SECONDS) * SECOND
        async with api.agent(agent_id="a1") as agent:
            await agent.say(job, 1, **ended(Outcome.LOST, "the agent ended", cause=Outcome.OUTSIDE))
            await agent.sync()
            await agent.wish(job, 2)
        return await api.get(f"jobs/{job}")

    async with running(tmp_path, clock=lambda: now[0]) as api:
        job = await submitted(api)
        async with api.agent(agent_id="a1") as agent:
            await agent.sync()
            await agent.wish(job, 1)
        await api.without_agent()
        if not restarted:
            assert (await after_two_hours(api, job)).state == S.RECOVERING
    if restarted:
        async with running(tmp_path, clock=lambda: now[0]) as api:
            assert (await after_two_hours(api, job)).state == S.RECOVERING


async def test_a_second_agent_is_refused_and_a_take_over_fences_the_first(api: Running) -> None:
    job = await submitted(api)
    async with api.agent() as first:
        await first.sync()
        await first.wish(job)
        await first.say(job, 1, **started())
        async with api.agent() as second:
            await second.until(lambda: second.ended)
            assert "--take-over" in second.refusal
        async with api.agent(version="0.0.0") as old:
            await old.until(lambda: old.ended)
            assert "install the same on both" in old.refusal
        async with api.agent(take_over=True) as third:
            await third.sync()
            await first.until(lambda: first.refusal and first.ended)
            assert (await third.wish(job)).order.run_number == 2
            assert (await api.get(f"jobs/{job}")).runs[0].end_reason.startswith("its coordinator is gone")


async def test_a_run_goes_on_over_a_new_connection_and_a_new_server(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        job = await submitted(api)
        async with api.agent(agent_id="a1") as agent:
            await agent.sync()
            await agent.wish(job)
            await agent.say(job, 1, **started())
    async with running(tmp_path) as api, api.agent(agent_id="a1") as agent:
        agent.resume_at(job, 1, 1)
        await agent.say(job, 1, **progress(7))
        await agent.sync(running=[(job, 1)])
        assert (await agent.wish(job)).order.run_number == 1
        assert (await api.get(f"jobs/{job}")).progress.step == 7


async def test_an_agent_that_is_away_is_said(tmp_path: Path) -> None:
    now = [wall_clock()]
    async with running(tmp_path, clock=lambda: now[0]) as api:
        job = await submitted(api)
        async with api.agent() as agent:
            await agent.sync()
            await agent.wish(job)
            await agent.say(job, 1, **started())
        await api.without_agent()
        now[0] += 60 * SECOND
        shown = await api.get(f"jobs/{job}")
        assert shown.state == S.RUNNING and "the agent is unreachable since" in shown.status_detail


async def test_a_cancel_reaches_the_run_and_wins_over_a_late_success(api: Running) -> None:
    job = await submitted(api)
    async with api.agent() as agent:
        await agent.sync()
        await agent.wish(job)
        await agent.say(job, 1, **started())
        assert (await api.cancel(f"jobs/{job}")).state == S.CANCELLING
        await agent.until(lambda: agent.wishes.runs[0].intent == pb.RunWish.CANCEL)
        await agent.say(job, 1, **ended(Outcome.SUCCEEDED, "all steps", 240))
    shown = await api.get(f"jobs/{job}")
    assert shown.state == S.CANCELLED and "had finished at step 240" in shown.status_detail


async def test_a_cancel_survives_a_new_server_and_never_runs_again(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        job = await submitted(api)
        async with api.agent(agent_id="a1") as agent:
            await agent.sync()
            await agent.wish(job)
        await api.cancel(f"jobs/{job}")
    async with running(tmp_path) as api, api.agent(agent_id="a2") as agent:
        await agent.sync()
        await api.until(f"jobs/{job}", S.CANCELLED)
        assert not agent.wishes.runs


async def test_the_same_cause_without_a_step_ends_the_job(api: Running) -> None:
    job = await submitted(api)
    async with api.agent() as agent:
        await agent.sync()
        for run in range(1, limits.SAME_CAUSE_RUNS + 1):
            await agent.wish(job, run)
            await agent.say(job, run, **started())
            await agent.say(job, run, **ended(Outcome.LOST, f"agent {run}: out of memory", cause=Outcome.OWN))
    shown = await api.get(f"jobs/{job}")
    assert shown.state == S.FAILED and "so ended 3 runs" in shown.status_detail and len(shown.runs) == 3


async def test_progress_between_failures_starts_the_count_again(api: Running) -> None:
    job = await submitted(api)
    async with api.agent() as agent:
        await agent.sync()
        for run in range(1, 6):
            await agent.wish(job, run)
            await agent.say(job, run, **started(step=run))
            await agent.say(job, run, **progress(run + 1))
            await agent.say(job, run, **ended(Outcome.LOST, "worker 1 crashed", run + 1, Outcome.OWN))
        assert (await agent.wish(job, 6)).order.furthest_step == 6


async def test_kills_from_outside_end_a_job_by_time_alone(tmp_path: Path) -> None:
    now = [wall_clock()]
    async with running(tmp_path, clock=lambda: now[0]) as api:
        job = await submitted(api)
        async with api.agent() as agent:
            await agent.sync()
            for run in range(1, 6):
                await agent.wish(job, run)
                await agent.say(job, run, **started())
                await agent.say(job, run, **ended(Outcome.LOST, "worker 1 crashed", cause=Outcome.OUTSIDE))
            await agent.wish(job, 6)
            now[0] += int(limits.NO_PROGRESS_SECONDS + 1) * SECOND
            await agent.say(job, 6, **ended(Outcome.LOST, "worker 1 crashed", cause=Outcome.OUTSIDE))
        shown = await api.get(f"jobs/{job}")
        assert shown.state == S.FAILED and "no run came further for 60 minutes" in shown.status_detail


async def test_kills_from_outside_do_not_count_with_a_cause_of_its_own(api: Running) -> None:
    job = await submitted(api)
    async with api.agent() as agent:
        await agent.sync()
        causes = [Outcome.OWN, Outcome.OWN, Outcome.OUTSIDE, Outcome.OUTSIDE, Outcome.OWN]
        for run, cause in enumerate(causes, start=1):
            assert (await api.get(f"jobs/{job}")).state != S.FAILED
            await agent.wish(job, run)
            await agent.say(job, run, **ended(Outcome.LOST, "worker 1 crashed", cause=cause))
    shown = await api.get(f"jobs/{job}")
    assert shown.state == S.FAILED and "so ended 3 runs" in shown.status_detail


async def test_a_run_that_asks_itself_to_pause_again_and_again_ends_the_job(api: Running) -> None:
    job = await submitted(api)
    async with api.agent() as agent:
        await agent.sync()
        for run in range(1, limits.SAME_CAUSE_RUNS + 1):
            await agent.wish(job, run)
            await agent.say(job, run, **ended(Outcome.PAUSED, "paused"))
    assert (await api.get(f"jobs/{job}")).state == S.FAILED


async def test_recovering_keeps_its_slots_and_counters_never_go_backwards(api: Running) -> None:
    job, other = await submitted(api), await submitted(api)
    async with api.agent() as agent:
        await agent.sync(slots=2)
        await agent.wish(job)
        await agent.say(job, 1, **started(workers=2))
        await agent.say(job, 1, **progress(50, rows=6400, replayed=10, skipped=3))
        await agent.say(job, 1, recovering=pb.RunRecovering(reason="worker 1 did not reach step 51"))
        shown = await api.get(f"jobs/{job}")
        assert shown.state == S.RECOVERING and shown.status_detail == "worker 1 did not reach step 51"
        assert (await api.get(f"jobs/{other}")).state == S.QUEUED
        await agent.say(job, 1, **ended(Outcome.LOST, "the coordinator crashed", 50))
        await agent.wish(job, 2)
        await agent.say(job, 2, **started(step=40))
        await agent.say(job, 2, **progress(45, rows=5760, replayed=640, skipped=2))
        shown = await api.get(f"jobs/{job}")
        assert shown.progress.step == 45
        assert (shown.progress.applied_rows, shown.progress.replayed_rows) == (6400, 650)
        assert shown.progress.skipped_steps == 3
        assert [run.start_step for run in shown.runs] == [0, 40]
        assert (await api.get(f"jobs/{other}")).state == S.QUEUED


async def test_deleted_jobs_files_are_removed_by_the_agent(api: Running) -> None:
    job = await submitted(api)
    folder = api.server.settings.data / "files" / "checkpoints" / job
    folder.mkdir(parents=True)
    await api.cancel(f"jobs/{job}")
    async with api.agent() as agent:
        await agent.sync()
        request = training_job_service_pb2.DeleteTrainingJobRequest(name=f"jobs/{job}")
        await api.jobs.DeleteTrainingJob(request, metadata=METADATA)
        await agent.until(lambda: list(agent.wishes.removed_job_ids) == [job])
        with pytest.raises(grpc.aio.AioRpcError, match="still being removed"):
            await api.create(training_job_id=job)
        folder.rmdir()
        api.server.dispatcher.kick()
        await agent.until(lambda: not agent.wishes.removed_job_ids)
        assert (await api.create(training_job_id=job)).name == f"jobs/{job}"


async def test_an_agent_that_says_nothing_is_let_go(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AGENT_SILENCE_SECONDS", 0.2)
    async with api.agent() as agent:
        await agent.until(lambda: agent.ended)
    await api.without_agent()


def test_every_event_of_the_protocol_is_handled() -> None:
    known = {field.name for field in pb.RunEvent.DESCRIPTOR.oneofs_by_name["event"].fields}
    assert known == {"points", *apply_module._HANDLERS}


async def test_events_of_a_deleted_job_are_acknowledged(api: Running) -> None:
    async with api.agent() as agent:
        await agent.say("unknown-job", 1, **started())  # of a job that was deleted: acknowledged, so that its spool can go
