"""A small job for the tests: a dataset of random classes on disk, and the order that a server would send for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from lockstep.contract.arithmetic import ARITHMETIC_VERSION, default_shards, validation_count
from lockstep.contract.digests import arithmetic_digest
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import training_job_pb2 as job
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.model_pb2 import Dense, Layer, ModelSpec, Relu
from lockstep.v1.optimization_pb2 import Loss, Momentum, Optimizer, Schedule, SoftmaxCrossEntropy
from worker.nn.shapes import parameter_layout
from worker.specs import architecture

INPUTS = 8
CLASSES = 3


def write_dataset(files_folder: Path, rows: int = 200) -> str:
    """Writes a dataset version and returns its digest."""
    random = np.random.Generator(np.random.Philox(key=5))
    y = random.integers(0, CLASSES, rows, dtype=np.int64)
    x = (random.standard_normal((rows, INPUTS)) + y[:, None]).astype(np.float32)
    temporary = files_folder / "datasets" / "new.tmp"
    temporary.mkdir(parents=True)
    columns = {}
    for name, values in (("x", x), ("y", y)):
        np.save(temporary / f"{name}.npy", values)
        sha256 = hashlib.sha256(values.tobytes()).hexdigest()
        columns[name] = {"dtype": values.dtype.name, "shape": list(values.shape), "sha256": sha256}
    described = {
        "format": 1,
        "rows": rows,
        "input_shape": [INPUTS],
        "target": {"classes": {"count": CLASSES, "names": ["a", "b", "c"]}},
        "input_names": [f"x{number}" for number in range(INPUTS)],
        "label_name": "y",
        "columns": columns,
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (temporary / "dataset.json").write_text(json.dumps({**described, "digest": digest, "warnings": []}))
    temporary.rename(files_folder / "datasets" / digest)
    return digest


def make_order(
    files_folder: Path,
    *,
    rows: int = 200,
    epochs: int = 3,
    batch_size: int = 64,
    workers: int = 1,
    run_number: int = 1,
    learning_rate: float = 0.05,
    checkpoint_steps: int = 0,
    evaluation_steps: int = 0,
    standardize: bool = True,
    schedule: Schedule | None = None,
    job_id: str = "small-0001",
) -> agent.RunOrder:
    """An order for a net of one hidden layer, as the server resolves it."""
    there = sorted((files_folder / "datasets").glob("*")) if (files_folder / "datasets").exists() else []
    digest = there[0].name if there else write_dataset(files_folder, rows)
    spec = JobSpec(
        name="small",
        dataset=f"datasets/small@{digest}",
        validation_fraction=0.2,
        model=ModelSpec(layers=[Layer(dense=Dense(units=16)), Layer(relu=Relu()), Layer(dense=Dense(units=CLASSES))]),
        loss=Loss(softmax_cross_entropy=SoftmaxCrossEntropy()),
        optimizer=Optimizer(momentum=Momentum(learning_rate=learning_rate, momentum=0.9), schedule=schedule),
    )
    spec.training.epochs, spec.training.batch_size, spec.training.seed = epochs, batch_size, 7
    spec.training.shards = max(4, default_shards(batch_size))
    spec.workers.min, spec.workers.max = 1, max(1, workers)
    if standardize:
        spec.preprocessing.standardize.SetInParent()
    if checkpoint_steps:
        spec.checkpoints.every_steps = checkpoint_steps
    if evaluation_steps:
        spec.evaluation.every_steps = evaluation_steps
    validation = validation_count(rows, spec.validation_fraction)
    training = rows - validation
    steps_per_epoch = -(-training // batch_size)
    layout = parameter_layout(architecture(spec.model, (INPUTS,)))
    plan = job.Plan(
        training_rows=training,
        validation_rows=validation,
        steps_per_epoch=steps_per_epoch,
        total_steps=epochs * steps_per_epoch,
        shards=spec.training.shards,
        parameters=layout.size,
        worker_memory_bytes=64 << 20,
        checkpoint_bytes=layout.size * 8,
    )
    return agent.RunOrder(
        job_id=job_id,
        run_number=run_number,
        kind=job.TrainingJob.TRAINING,
        spec=spec,
        plan=plan,
        arithmetic_digest=arithmetic_digest(spec, digest, ARITHMETIC_VERSION),
        dataset_digest=digest,
        arithmetic_version=ARITHMETIC_VERSION,
        workers=workers,
    )
