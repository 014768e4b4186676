"""What people ask of a job under way, to rest, to go on, to have other workers, changes none of its weights."""

from __future__ import annotations

import pytest

from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import Run, TrainingJob

from .service import Service, example, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def job_of_one_worker() -> JobSpec:
    """The digits job, long enough to be steered."""
    spec = example("digits.yaml", workers=(1, 1))
    spec.training.epochs = 2_000
    return spec


@pytest.fixture(scope="module")
def undisturbed(service: Service) -> TrainingJob:
    """The job on one worker, from start to end."""
    return service.run(job_of_one_worker())


def test_a_paused_job_goes_on_with_other_workers_as_if_nobody_had_paused_it(service: Service, undisturbed: TrainingJob) -> None:
    with service.client() as client:
        job = client.submit(job_of_one_worker())
        steps: list[int] = []
        for least, most in ((2, 2), (1, 3)):
            service.wait_for_step(job.name, sum(steps[-1:]) + 100, 60)
            client.pause(job.name)
            paused = client.wait(job.name, {TrainingJob.PAUSED}, timeout_s=60)
            assert paused.state == TrainingJob.PAUSED, paused.status_detail
            wait_until("its slots are free", lambda: client.cluster().slots_in_use == 0, 5)
            steps.append(paused.runs[-1].last_step)
            assert paused.status_detail == f"paused at step {steps[-1]}"
            scaled = client.scale(job.name, min=least, max=most)
            assert (scaled.spec.workers.min, scaled.spec.workers.max) == (least, most)
            assert service.cli("resume", job.name).returncode == 0
    ended = service.finished(job.name)
    is_like(service, ended, undisturbed)
    assert [run.start_step for run in ended.runs] == [0, *steps] and steps == sorted(set(steps))
    assert [len(run.members) for run in ended.runs] == [1, 2, 3]


def test_a_job_scaled_while_it_runs_has_the_weights_of_one_left_alone(service: Service, undisturbed: TrainingJob) -> None:
    with service.client() as client:
        job = client.submit(job_of_one_worker())

        def until_it_has(workers: int) -> Run:
            def there() -> bool:
                now = client.get(job.name)
                assert now.state in (TrainingJob.QUEUED, TrainingJob.STARTING, TrainingJob.RUNNING), now.status_detail
                return [len(run.members) for run in now.runs] == [workers] and client.cluster().slots_in_use == workers

            wait_until(f"it runs on {workers} workers", there, 60)
            return client.get(job.name).runs[0]

        alone = until_it_has(1)
        service.wait_for_step(job.name, 100, 60)
        client.scale(job.name, max=4)
        four = until_it_has(4)
        step = client.get(job.name).progress.step
        service.wait_for_step(job.name, step + 100, 60)
        assert service.cli("scale", job.name, "--max", "2").returncode == 0
        two = until_it_has(2)
    ended = service.finished(job.name)
    assert [member.pid for member in alone.members] == [member.pid for member in four.members][:1]
    assert [member.pid for member in two.members] == [member.pid for member in four.members][:2]
    assert len(ended.runs) == 1 and (ended.spec.workers.min, ended.spec.workers.max) == (1, 2)
    is_like(service, ended, undisturbed)
    changed = [event.notice.text for event in service.events(job.name) if event.notice.reason == "WORKERS_CHANGED"]
    assert "with 2 workers instead of 4" in changed[-1]


def is_like(service: Service, ended: TrainingJob, undisturbed: TrainingJob) -> None:
    """Asserts that nobody can tell from weights, curves and counts what was asked of the job on its way."""
    assert ended.result.weights_sha256 == undisturbed.result.weights_sha256
    assert ended.arithmetic_digest == undisturbed.arithmetic_digest
    assert ended.progress.applied_rows == undisturbed.progress.applied_rows == sum(run.computed_rows for run in ended.runs)
    assert ended.progress.replayed_rows == 0
    assert service.curve(ended.name) == service.curve(undisturbed.name)
