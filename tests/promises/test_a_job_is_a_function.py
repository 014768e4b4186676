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

from .service import ROOT, Service, example, wait_until

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


def test_a_paused_job_goes_on_with_other_workers_as_if_nobody_had_paused_it(service: Service) -> None:
    spec = example("digits.yaml", workers=(1, 1))
    spec.training.epochs = 1_000
    undisturbed = service.run(spec)
    with service.client() as client:
        job = client.submit(spec)
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
    assert ended.result.weights_sha256 == undisturbed.result.weights_sha256
    assert ended.arithmetic_digest == undisturbed.arithmetic_digest
    assert [run.start_step for run in ended.runs] == [0, *steps] and steps == sorted(set(steps))
    assert [len(run.members) for run in ended.runs] == [1, 2, 3]
    assert ended.progress.applied_rows == undisturbed.progress.applied_rows == sum(run.computed_rows for run in ended.runs)
    assert ended.progress.replayed_rows == 0
    assert curve(service, ended.name) == curve(service, undisturbed.name)


def curve(service: Service, job: str) -> list[tuple[int, str, float]]:
    """The points of a job's curves, in order."""
    events = [event.points for event in service.events(job) if event.HasField("points")]
    return sorted((points.step, point.name, point.value) for points in events for point in points.points)


def test_another_seed_gives_other_weights(service: Service, jobs: dict[tuple[int, int], TrainingJob]) -> None:
    other = service.run(example("digits.yaml", seed=8))
    assert other.result.weights_sha256 not in {job.result.weights_sha256 for job in jobs.values()}


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
