"""The job of a simulation: small, drawn from the seed, and valid as a server would have resolved it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from lockstep.contract.arithmetic import ARITHMETIC_VERSION, EVALUATION_BLOCK_ROWS
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import job_spec_pb2
from lockstep.v1 import training_job_pb2 as job
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.model_pb2 import Dense, Layer, ModelSpec
from lockstep.v1.optimization_pb2 import Loss, MeanSquaredError, Momentum, Optimizer, PlateauSchedule, Schedule
from worker.nn.shapes import parameter_layout
from worker.specs import architecture, optimizer_record

JOB_ID = "simulated"
INPUTS = 2


@final
@dataclass(frozen=True)
class Job:
    """What the seed says about the job; `step_s` is how long its steps take, `bad` and `overflows` the steps whose gradients
    or whose updates are not finite."""

    seed: int
    training_rows: int
    validation_rows: int
    batch_size: int
    epochs: int
    shards: int
    workers: int
    minimum: int
    evaluate_every: int
    checkpoint_every: int
    keep: int
    patience: int
    step_s: float
    bad: frozenset[int] = frozenset()
    overflows: frozenset[int] = frozenset()

    @classmethod
    def drawn(cls, seed: int) -> Job:
        """The job of a seed."""
        dice = random.Random(seed * 2 + 1)
        batch_size, per_epoch, epochs = dice.choice([3, 8, 10]), dice.randint(1, 5), dice.randint(1, 4)
        total = per_epoch * epochs
        shards, workers = dice.choice([1, 2, 3, 4, 6, 8]), dice.randint(1, 4)
        odd = {step for step in range(1, total + 1) if dice.random() < 0.1} if dice.random() < 0.3 else set()
        return cls(
            seed=seed,
            training_rows=batch_size * per_epoch - dice.randint(0, batch_size - 1),
            validation_rows=dice.choice([0, 1, 2, 3, 5]) * EVALUATION_BLOCK_ROWS,
            batch_size=batch_size,
            epochs=epochs,
            shards=shards,
            workers=workers,
            minimum=min(dice.choice([1, 1, workers]), shards, batch_size),
            evaluate_every=dice.choice([0, 1, 2, 3]),
            checkpoint_every=dice.choice([0, 1, 2, 3, 4]),
            keep=dice.choice([1, 2, 3]),
            patience=dice.choice([0, 1, 2]),
            step_s=dice.choice([0.0004, 0.1, 0.4, 3.0]),
            bad=frozenset(step for step in odd if step % 2),
            overflows=frozenset(step for step in odd if step % 2 == 0),
        )

    @property
    def blocks(self) -> int:
        """Blocks of validation rows."""
        return -(-self.validation_rows // EVALUATION_BLOCK_ROWS)

    @cached_property
    def order(self) -> agent.RunOrder:
        """The order of its first run; the digests are fixed by the seed."""
        spec = JobSpec(
            name=JOB_ID,
            model=ModelSpec(layers=[Layer(dense=Dense(units=2)) for _ in range(3)]),
            loss=Loss(mean_squared_error=MeanSquaredError()),
            optimizer=Optimizer(momentum=Momentum(learning_rate=0.05, momentum=0.5)),
            non_finite=job_spec_pb2.SKIP_STEP,
        )
        if self.patience:
            plateau = PlateauSchedule(factor=0.5, patience=self.patience)
            spec.optimizer.schedule.CopyFrom(Schedule(plateau=plateau))
        spec.training.epochs, spec.training.batch_size = self.epochs, self.batch_size
        spec.training.seed, spec.training.shards = self.seed, self.shards
        spec.workers.min, spec.workers.max = self.minimum, 8
        spec.evaluation.every_steps, spec.checkpoints.every_steps = self.evaluate_every, self.checkpoint_every
        spec.checkpoints.keep = self.keep
        steps = -(-self.training_rows // self.batch_size)
        plan = job.Plan(
            training_rows=self.training_rows,
            validation_rows=self.validation_rows,
            steps_per_epoch=steps,
            total_steps=steps * self.epochs,
            shards=self.shards,
            parameters=self.layout.size,
        )
        return agent.RunOrder(
            job_id=JOB_ID,
            kind=job.TrainingJob.TRAINING,
            spec=spec,
            plan=plan,
            arithmetic_digest=f"{self.seed:064x}",
            dataset_digest="d" * 64,
            arithmetic_version=ARITHMETIC_VERSION,
            workers=self.workers,
        )

    @cached_property
    def layout(self):  # type: ignore[no-untyped-def]
        """Where its tensors lie."""
        model = ModelSpec(layers=[Layer(dense=Dense(units=2)) for _ in range(3)])
        return parameter_layout(architecture(model, (INPUTS,)))

    @cached_property
    def optimizer(self):  # type: ignore[no-untyped-def]
        """Its optimizer, as the engine knows it."""
        return optimizer_record(self.order.spec.optimizer)

    @property
    def total_steps(self) -> int:
        """Steps in all."""
        return self.order.plan.total_steps

    def write_dataset(self, files_folder: Path) -> None:
        """The description alone: nobody reads a row."""
        folder = files_folder / "datasets" / self.order.dataset_digest
        folder.mkdir(parents=True, exist_ok=True)
        described = {"input_shape": [INPUTS], "target": {"numbers": {"width": 2}}, "input_names": []}
        (folder / "dataset.json").write_text(json.dumps(described))
