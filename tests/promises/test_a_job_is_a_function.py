"""Same job, same dataset: same weights, bit for bit, on any number of workers, and as a plain NumPy program computes them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lockstep.contract.arithmetic import shard_rows
from lockstep.v1.training_job_pb2 import TrainingJob
from tests.coordinator.altered import alter, checkpoint_folder

from .service import ROOT, Service, example

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

WORKERS = [(1, 1), (2, 2), (3, 3), (1, 2), (1, 8)]


def weights_of_file(path: Path) -> str:
    """SHA-256 over the tensors of a safetensors file in ascending order of their names; reads the format by itself."""
    content = path.read_bytes()
    header_size = int.from_bytes(content[:8], "little")
    tensors = {name: entry for name, entry in json.loads(content[8 : 8 + header_size]).items() if name != "__metadata__"}
    digest = hashlib.sha256()
    for name in sorted(tensors, key=str.encode):
        assert tensors[name]["dtype"] == "F32"
        first, end = tensors[name]["data_offsets"]
        digest.update(content[8 + header_size + first : 8 + header_size + end])
    return digest.hexdigest()


@pytest.fixture(scope="module")
def jobs(service: Service) -> dict[tuple[int, int], TrainingJob]:
    """The digits job, trained with each of WORKERS."""
    return {workers: service.run(example("digits.yaml", workers=workers)) for workers in WORKERS}


def test_the_weights_are_those_of_the_reference(jobs: dict[tuple[int, int], TrainingJob]) -> None:
    command = [sys.executable, "tests/worker/reference_digits.py", "examples/digits.npz", "--standardize"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert {job.result.weights_sha256 for job in jobs.values()} == {done.stdout.strip()}


def test_the_pulled_file_holds_these_weights(
    service: Service, jobs: dict[tuple[int, int], TrainingJob], tmp_path: Path
) -> None:
    for workers, job in jobs.items():
        folder = tmp_path / f"{workers[0]}-{workers[1]}"
        with service.client() as client:
            manifest = client.pull_model(job.name, folder)
        assert weights_of_file(folder / "model.safetensors") == job.result.weights_sha256 == manifest.weights_sha256


def test_the_workers_are_processes_with_a_share_each(jobs: dict[tuple[int, int], TrainingJob]) -> None:
    for (least, most), job in jobs.items():
        (run,) = job.runs
        workers, plan, training = len(run.members), job.plan, job.spec.training
        assert least <= workers <= min(most, plan.shards) and run.workers == workers
        assert len({member.pid for member in run.members}) == workers
        assert len({member.fingerprint for member in run.members}) == 1
        expected: Counter[int] = Counter()
        for first in range(0, plan.training_rows, training.batch_size):
            rows = min(training.batch_size, plan.training_rows - first)
            for shard, (begin, end) in enumerate(shard_rows(rows, plan.shards)):
                (owner,) = [member.rank for member in run.members if member.first_shard <= shard < member.end_shard]
                expected[owner] += (end - begin) * training.epochs
        assert {member.rank: member.computed_rows for member in run.members} == expected
        assert sum(expected.values()) == plan.training_rows * training.epochs == job.progress.applied_rows
        assert min(expected.values()) > 0 and job.progress.replayed_rows == 0


def test_a_cap_on_the_workers_is_said(jobs: dict[tuple[int, int], TrainingJob]) -> None:
    assert jobs[1, 8].spec.workers.max == jobs[1, 8].plan.shards == 4
    assert any("workers.max" in warning and "4" in warning for warning in jobs[1, 8].warnings)
    assert not any("workers.max" in warning for warning in jobs[1, 2].warnings)
    assert jobs[1, 2].arithmetic_digest == jobs[1, 8].arithmetic_digest


def test_another_seed_gives_other_weights(service: Service, jobs: dict[tuple[int, int], TrainingJob]) -> None:
    other = service.run(example("digits.yaml", seed=8))
    assert other.result.weights_sha256 not in {job.result.weights_sha256 for job in jobs.values()}


def test_a_replay_passes_what_is_right_and_names_what_was_altered(
    service: Service, jobs: dict[tuple[int, int], TrainingJob]
) -> None:
    spec = example("digits.yaml", workers=(2, 2))
    spec.checkpoints.every_steps, spec.checkpoints.keep = 60, 10
    job = service.run(spec)
    name, steps = job.name.removeprefix("jobs/"), [one.step for one in job.result.checkpoints]
    assert len(steps) > 2
    done = service.cli("verify", name)
    assert done.returncode == 0, done.stderr
    right = f"steps {steps[-2] + 1} to {steps[-1]} replayed: the weights are those of the checkpoint of step {steps[-1]}"
    assert right in done.stdout and job.result.weights_sha256[:12] in done.stdout
    altered = alter(checkpoint_folder(service.data / "files", name, steps[1])).weights_sha256
    done = service.cli("verify", name, "--step", str(steps[1]))
    assert done.returncode == 1, done.stderr
    said = f"the checkpoint of step {steps[1]} is not what the job computes: its weights_sha256 is {altered}, the replay's "
    assert said + job.result.checkpoints[1].weights_sha256 in done.stdout and f"{steps[0]} is right" in done.stdout
    # What begins at the altered one differs, too, and it is still the altered one that is named.
    done = service.cli("verify", name, "--step", str(steps[2]))
    assert done.returncode == 1 and said in done.stdout and f"step {steps[2]} is right" in done.stdout
    # The job itself is as it was: two that are the same function are the same, without a replay.
    done = service.cli("diff", name, jobs[1, 1].name)
    assert done.returncode == 0 and "both are the same function" in done.stdout and "same up to step" in done.stdout


def test_two_jobs_part_where_a_field_first_tells(service: Service, jobs: dict[tuple[int, int], TrainingJob]) -> None:
    spec = example("digits.yaml")
    total = jobs[1, 1].plan.total_steps
    spec.optimizer.schedule.step.every_epochs, spec.optimizer.schedule.step.factor = 2, 0.5
    other = service.run(spec)
    done = service.cli("diff", jobs[1, 1].name, other.name)
    assert done.returncode == 1, done.stderr
    assert "optimizer.schedule.step.factor" in done.stdout
    # The learning rate is another one from the third epoch on.
    step = 2 * jobs[1, 1].plan.steps_per_epoch + 1
    assert step < total and f"they part at step {step}: after step {step - 1} both have weights_sha256 " in done.stdout


def test_the_metrics_are_the_same_on_any_number_of_workers(service: Service, jobs: dict[tuple[int, int], TrainingJob]) -> None:
    digits = jobs[1, 2]
    assert digits.end_time.ToNanoseconds() - digits.create_time.ToNanoseconds() < 30e9
    for job in jobs.values():
        assert job.result.validation_metrics == digits.result.validation_metrics
        assert job.result.validation_classes == digits.result.validation_classes
    assert digits.result.validation_metrics.f1 >= 0.95
    assert digits.result.validation_metrics.top_5_accuracy > digits.result.validation_accuracy
    iris = service.run(example("iris.yaml")).result
    assert sum(one.support for one in iris.validation_classes) == 30 and all(one.name for one in iris.validation_classes)
