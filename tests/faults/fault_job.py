"""The small job of the fault tests, and what it gives when nothing disturbs it.

It has whatever must survive a fault: dropout, running statistics, Adam's two vectors, clipping by the global norm (which takes
two passes), a learning rate that changes with every step, a short last batch, evaluations.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

from coordinator.checkpoint_folder import read_manifest
from coordinator.checkpoints import folder_name
from lockstep.contract.arithmetic import ARITHMETIC_VERSION
from lockstep.contract.digests import arithmetic_digest
from lockstep.contract.manifest import FileRecord, Manifest
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1.model_pb2 import BatchNorm, Dense, Dropout, Layer, ModelSpec, Relu
from lockstep.v1.optimization_pb2 import Adam, Clipping, CosineSchedule, Optimizer, Schedule
from tests.coordinator.one_run import curve, run_once
from tests.coordinator.small_job import CLASSES, INPUTS, make_order
from worker.nn.shapes import parameter_layout
from worker.specs import architecture

BATCH = 48
STEPS_PER_EPOCH = 4  # 160 rows: 48, 48, 48, 16
EPOCHS = 3
CHECKPOINT_STEPS = 3
EVALUATION_STEPS = 4
KEPT = 2
SHARDS = 4


def fault_order(
    files_folder: Path,
    *,
    workers: int = 2,
    least: int = 1,
    run_number: int = 1,
    epochs: int = EPOCHS,
    points: Sequence[str] = (),
    checkpoint_steps: int = CHECKPOINT_STEPS,
    kept: int = KEPT,
) -> agent.RunOrder:
    """The order of a run of the job."""
    order = make_order(files_folder, epochs=epochs, batch_size=BATCH, workers=workers, run_number=run_number, job_id="fault-1")
    spec = order.spec
    spec.model.CopyFrom(_model())
    spec.optimizer.CopyFrom(
        Optimizer(
            adam=Adam(learning_rate=0.01),
            schedule=Schedule(cosine=CosineSchedule(), warmup_steps=2),
            clipping=Clipping(global_norm=1.0),
        )
    )
    spec.workers.min = least
    spec.training.shards = order.plan.shards = order.plan.filled_shards = SHARDS
    spec.checkpoints.every_steps, spec.checkpoints.keep = checkpoint_steps, kept
    spec.evaluation.every_steps = EVALUATION_STEPS
    layout = parameter_layout(architecture(spec.model, (INPUTS,)))
    order.plan.parameters, order.plan.checkpoint_bytes = layout.size, layout.size * 12
    order.arithmetic_digest = arithmetic_digest(spec, order.dataset_digest, ARITHMETIC_VERSION)
    order.failpoints.extend(points)
    return order


def _model() -> ModelSpec:
    # Wide enough that every worker's chunk has several blocks of 4,096 floats.
    return ModelSpec(
        layers=[
            Layer(dense=Dense(units=128)),
            Layer(batch_norm=BatchNorm()),
            Layer(relu=Relu()),
            Layer(dropout=Dropout(rate=0.2)),
            Layer(dense=Dense(units=128)),
            Layer(relu=Relu()),
            Layer(dense=Dense(units=CLASSES)),
        ]
    )


@final
@dataclass(frozen=True, slots=True)
class StepState:
    """What a manifest says of a step, as far as neither time nor workers have a part in it: the files with weights and
    optimizer, the losses, what the controller remembers."""

    files: dict[str, FileRecord]
    losses: tuple[float | None, ...]
    best_step: int | None
    controller: dict[str, Any]
    applied_rows: int

    @classmethod
    def of(cls, manifest: Manifest) -> StepState:
        """That of a checkpoint."""
        losses = (manifest.loss, manifest.validation_loss, manifest.best_validation_loss)
        return cls(manifest.files, losses, manifest.best_step, manifest.controller, manifest.applied_rows)


@final
@dataclass(frozen=True, slots=True)
class Reference:
    """What one uninterrupted run on one worker gives: after each step the hash of the weights and the state; the curves."""

    hashes: dict[int, str]
    states: dict[int, StepState]
    curve: dict[tuple[int, str], float]
    rows: int


_references: dict[int, Reference] = {}
_making = threading.Lock()


def reference(epochs: int = EPOCHS) -> Reference:
    """The job undisturbed; run once a process for each length."""
    with _making:
        if epochs not in _references:
            with TemporaryDirectory(prefix="lockstep-faults-") as folder:
                files = Path(folder)
                order = fault_order(files, workers=1, epochs=epochs, checkpoint_steps=1, kept=epochs * STEPS_PER_EPOCH)
                ended, events = run_once(order, files)
                checkpoints = files / "checkpoints" / order.job_id
                states = {
                    step: StepState.of(read_manifest(checkpoints / folder_name(step, order.arithmetic_digest)))
                    for step in range(1, order.plan.total_steps + 1)
                }
            assert ended.outcome == agent.RunEnded.SUCCEEDED, ended.reason
            hashes = {
                event.checkpoint.step: event.checkpoint.weights_sha256 for event in events if event.HasField("checkpoint")
            }
            assert sorted(hashes) == list(range(1, order.plan.total_steps + 1))
            _references[epochs] = Reference(hashes, states, curve(events), order.plan.training_rows * epochs)
        return _references[epochs]
