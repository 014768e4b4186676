"""What is killed is taken up again from the last checkpoint, and the weights are those of a run that nobody disturbed."""

from __future__ import annotations

import os
import signal

import pytest

from lockstep.v1.training_job_pb2 import TrainingJob
from tests.undisturbed import HASHES

from .service import Service, example, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

LONG_S = 300


def checkpoint_steps(service: Service, job: str) -> list[int]:
    """Steps of the checkpoints that are on disk."""
    folder = service.data / "files" / "checkpoints" / job.removeprefix("jobs/")
    return sorted(int(path.name.split("-")[0]) for path in folder.glob("[0-9]*-*") if (path / "manifest.json").exists())


def kill_between_checkpoints(service: Service, job: TrainingJob, victim: int, not_before: int) -> tuple[int, int]:
    """SIGKILL past a step, well between two checkpoints; gives the last checkpoint's step and the step."""
    cadence = job.spec.checkpoints.every_steps
    with service.client() as client:
        for event in client.watch(job.name, timeout_s=LONG_S):
            assert not event.HasField("state_change") or event.state_change.state != TrainingJob.SUCCEEDED
            step = event.progress.step if event.HasField("progress") else 0
            if step >= not_before and cadence // 4 < step % cadence < cadence * 3 // 4:
                break
    os.kill(victim, signal.SIGKILL)
    return checkpoint_steps(service, job.name)[-1], step


def test_a_killed_coordinator_agent_and_ray_head(service: Service) -> None:
    undisturbed = service.run(example("digits-long.yaml", workers=(1, 1)), LONG_S)
    HASHES[undisturbed.result.fingerprint] = undisturbed.result.weights_sha256
    with service.client() as client:
        job = client.submit(example("digits-long.yaml", workers=(2, 2)))
    total, rows = job.plan.total_steps, job.plan.training_rows * job.spec.training.epochs
    wait_until("the job runs", lambda: _state(service, job.name) == TrainingJob.RUNNING, 30)

    first_checkpoint, first_kill = kill_between_checkpoints(service, job, service.coordinator(job.name), total // 2)
    wait_until("a second run", lambda: len(_get(service, job.name).runs) == 2, 30)
    wait_until("it runs", lambda: _state(service, job.name) == TrainingJob.RUNNING, 60)
    second_checkpoint, second_kill = kill_between_checkpoints(service, job, service.agent(), total * 7 // 10)
    wait_until("a third run", lambda: len(_get(service, job.name).runs) == 3, 30)
    wait_until("it runs", lambda: _state(service, job.name) == TrainingJob.RUNNING, 60)
    third_checkpoint, third_kill = kill_between_checkpoints(service, job, service.ray_head(), total * 8 // 10)
    ended = service.finished(job.name, LONG_S)

    assert ended.result.weights_sha256 == undisturbed.result.weights_sha256
    assert [run.run_number for run in ended.runs] == [1, 2, 3, 4]
    assert [run.start_step for run in ended.runs] == [0, first_checkpoint, second_checkpoint, third_checkpoint]
    assert first_checkpoint < first_kill and second_checkpoint < second_kill and third_checkpoint < third_kill
    computed, cadence = sum(run.computed_rows for run in ended.runs), job.spec.checkpoints.every_steps
    assert ended.progress.applied_rows == rows
    assert 0 < computed - rows == ended.progress.replayed_rows <= 3 * cadence * job.spec.training.batch_size
    assert service.curve(ended.name) == service.curve(undisturbed.name)


def _get(service: Service, name: str) -> TrainingJob:
    with service.client() as client:
        return client.get(name)


def _state(service: Service, name: str) -> TrainingJob.State.ValueType:
    return _get(service, name).state
