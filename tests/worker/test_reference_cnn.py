"""Workers == the reference that takes one shard at a time, bit for bit, where batch normalization decides the shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from lockstep.contract.manifest import MODEL_FILE, OPTIMIZER_FILE
from lockstep.internal.v1.agent_service_pb2 import RunOrder
from lockstep.v1.job_spec_pb2 import JobSpec
from tests.worker.reference_cnn import Job, train
from tests.worker.reference_digits import Array, training_rows
from tests.worker.worker_processes import Workers, vectors, weights_hash, write_columns
from worker.nn.shapes import parameter_layout
from worker.specs import architecture
from worker.weights_file import tensors_from_flat

DIGITS = Path(__file__).parents[2] / "examples" / "digits.npz"

RELU: dict[str, Any] = {"relu": {}}
SAME: dict[str, Any] = {"padding": {"same": {}}}
TWO = {"height": 2, "width": 2}
THREE = {"height": 3, "width": 3}

# Weights at 1 and 10 are he_normal, past the layers between them and their relu; 6, before its pooling alone, is as well.
IMAGES: list[dict[str, Any]] = [
    {"reshape": {"shape": [8, 8, 1]}},
    {"conv2d": {"filters": 6, "kernel": THREE, "bias": False, **SAME}},
    {"batch_norm": {}},
    RELU,
    {"max_pool": {"window": TWO}},
    {"dropout": {"rate": 0.1}},
    {"conv2d": {"filters": 8, "kernel": THREE}},
    {"batch_norm": {"momentum": 0.75, "epsilon": 1e-3}},
    {"tanh": {}},
    {"flatten": {}},
    {"dense": {"units": 24}},
    {"batch_norm": {}},
    {"dropout": {"rate": 0.3}},
    RELU,
    {"dense": {"units": 10}},
]
DIGIT_JOB = Job(IMAGES, frozenset({1, 10}), batch=100, shards=8, epochs=2, validation_fraction=0.2, standardize=True)

# A channel has several positions, so that a batch may be a single row.
SIGNALS: list[dict[str, Any]] = [
    {"reshape": {"shape": [12, 1]}},
    {"conv1d": {"filters": 5, "kernel": 3, "bias": False}},
    {"batch_norm": {}},
    RELU,
    {"conv1d": {"filters": 4, "kernel": 3, "stride": 2}},
    {"batch_norm": {}},
    {"dropout": {"rate": 0.2}},
    {"flatten": {}},
    {"dense": {"units": 4}},
]
SIGNAL_ROWS, SIGNAL_BATCH = 100, 40

# Of one node, then of two.
SPLITS = [["a"], ["a", "a"], ["a"] * 3, ["a", "b"], ["a", "b", "b"], ["a", "a", "b"]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(["a"] * 3) as workers:
        yield workers


def steps_of(job: Job, rows: int) -> int:
    trained = len(training_rows(job.seed, rows, job.validation_fraction))
    return job.epochs * -(-trained // min(job.batch, trained))


def order(job: Job, digest: str, rows: int) -> RunOrder:
    """The same job as a coordinator hands it to its workers."""
    spec: dict[str, Any] = {
        "model": {"layers": job.layers},
        "loss": {"softmax_cross_entropy": {}},
        "optimizer": {
            "adam": {"learning_rate": job.rate, "beta1": job.beta1, "beta2": job.beta2, "epsilon": job.epsilon},
            "schedule": {"cosine": {"floor": job.floor}, "warmup_steps": job.warmup},
        },
        "training": {"epochs": job.epochs, "batch_size": job.batch, "shards": job.shards, "seed": job.seed},
        "validation_fraction": job.validation_fraction,
    }
    if job.standardize:
        spec["preprocessing"] = {"standardize": {}}
    made = RunOrder(job_id="test", run_number=1, spec=ParseDict(spec, JobSpec()), dataset_digest=digest)
    made.plan.shards, made.plan.total_steps = job.shards, steps_of(job, rows)
    return made


def hash_of_workers(workers: Workers, files: Path, run: RunOrder, inputs: int, nodes: list[str]) -> str:
    workers.form(files, run, nodes)
    workers.restore()
    last = run.plan.total_steps
    replies = workers.stretch(1, last)
    assert all(reply.step == last for reply in replies)
    return weights_hash(run, inputs, workers.state(last))


def hash_of_reference(job: Job, x: Array, y: Array) -> str:
    with threadpool_limits(limits=1, user_api="blas"):
        return train(job, x, y)


# 1,438 rows train. A last batch of 38 rows fills 4 of 8 shards, with 10, 10, 9 and 9 rows; one of 8 or of 2 rows fills one.
JOBS = [
    DIGIT_JOB,
    replace(DIGIT_JOB, batch=65, shards=4, seed=2**64 - 1),
    replace(DIGIT_JOB, batch=1436, shards=7, epochs=5),
]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"batch of {job.batch}")
def test_a_convolutional_network_has_the_hash_of_its_reference(workers: Workers, files: Path, job: Job) -> None:
    with np.load(DIGITS) as arrays:
        x, y = arrays["x"].astype(np.float32), arrays["y"].astype(np.int64)
    expected = hash_of_reference(job, x, y)
    folder = files / f"{job.batch}"
    run = order(job, write_columns(folder, x, y), len(x))
    for nodes in SPLITS:
        assert hash_of_workers(workers, folder, run, 64, nodes) == expected, nodes


def test_a_checkpoint_holds_the_running_statistics(workers: Workers, files: Path) -> None:
    """Two workers begin, others end: the reference, which nothing interrupts, has the same hash."""
    with np.load(DIGITS) as arrays:
        x, y = arrays["x"].astype(np.float32), arrays["y"].astype(np.int64)
    folder = files / "resumed"
    run = order(DIGIT_JOB, write_columns(folder, x, y), len(x))
    layout = parameter_layout(architecture(run.spec.model, (64,)))
    workers.form(folder, run, ["a", "a"])
    workers.restore()
    workers.stretch(1, 16)
    middle = {name: tensors_from_flat(layout, vector) for name, vector in vectors(workers.state(16)).items()}
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    save_file(middle.pop("parameters"), checkpoint / MODEL_FILE)
    state = {f"{name}/{tensor}": values for name, tensors in middle.items() for tensor, values in tensors.items()}
    save_file(state, checkpoint / OPTIMIZER_FILE)
    workers.form(folder, run, ["a", "b", "b"])
    workers.restore(16, "checkpoint")
    workers.stretch(17, 30)
    assert weights_hash(run, 64, workers.state(30)) == hash_of_reference(DIGIT_JOB, x, y)


@pytest.fixture(scope="module")
def signals(files: Path) -> tuple[str, Array, Array]:
    """(digest, x, y) of rows with classes that can be learned."""
    draw = np.random.default_rng(3)
    y = draw.integers(0, 4, SIGNAL_ROWS)
    x = (draw.normal(size=(SIGNAL_ROWS, 12)) + 2 * draw.normal(size=(4, 12))[y]).astype(np.float32)
    return write_columns(files, x, y), x, y


@pytest.mark.parametrize("shards", [4, 8])
@pytest.mark.parametrize("last", range(1, 21))
def test_a_short_last_batch_of_any_size_gives_one_hash(
    workers: Workers, files: Path, signals: tuple[str, Array, Array], shards: int, last: int
) -> None:
    digest, x, y = signals
    held_back = SIGNAL_ROWS - SIGNAL_BATCH - last
    job = Job(SIGNALS, frozenset({1}), SIGNAL_BATCH, shards, epochs=2, warmup=1, validation_fraction=held_back / SIGNAL_ROWS)
    expected = hash_of_reference(job, x, y)
    run = order(job, digest, SIGNAL_ROWS)
    assert run.plan.total_steps == 4
    for nodes in (SPLITS[last % 3], SPLITS[3 + last % 3]):
        assert hash_of_workers(workers, files, run, 12, nodes) == expected, nodes
