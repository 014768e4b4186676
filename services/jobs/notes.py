"""Notes on a job: what is allowed, and seldom meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lockstep.contract.digests import uses_controller
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import Plan, TrainingJob
from worker.nn.shapes import LayerShapes

# The activation that a loss applies by itself.
_OF_THE_LOSS = {"softmax_cross_entropy": "softmax", "binary_cross_entropy": "sigmoid"}


def notes(
    spec: JobSpec, plan: Plan, layers: Sequence[LayerShapes], kind: TrainingJob.Kind.ValueType = TrainingJob.TRAINING
) -> list[str]:
    """Sentences on a filled-in job and its Plan; those on steps and epochs are of no matter to a gradient check."""
    of_model = list(_twice_activated(spec, layers))
    if kind == TrainingJob.GRADIENT_CHECK:
        return of_model
    return [*_short_batches(spec, plan), *_idle_plateau(spec, plan), *_long_warmup(spec, plan), *of_model]


def _long_warmup(spec: JobSpec, plan: Plan) -> Iterator[str]:
    warmup = spec.optimizer.schedule.warmup_steps
    if warmup >= plan.total_steps:
        yield (
            f"optimizer.schedule.warmup_steps is {warmup:,}, and the job has {plan.total_steps:,} steps: the learning rate "
            "never reaches its full size"
        )


def _twice_activated(spec: JobSpec, layers: Sequence[LayerShapes]) -> Iterator[str]:
    last, loss = layers[-1], spec.loss.WhichOneof("kind") or ""
    if _OF_THE_LOSS.get(loss) == last.kind:
        yield f"model.{last.place}: {loss} applies it by itself, to outputs without it; leave the layer out"


def _short_batches(spec: JobSpec, plan: Plan) -> Iterator[str]:
    batch, rows = spec.training.batch_size, plan.training_rows
    if batch > rows:
        yield f"training.batch_size is {batch:,}, but {rows:,} rows train: each epoch is one short batch of {rows:,} rows"


def _idle_plateau(spec: JobSpec, plan: Plan) -> Iterator[str]:
    """A sentence if too few evaluations come before the last step for reduce-on-plateau ever to act."""
    if not uses_controller(spec):
        return
    schedule, every, last = spec.optimizer.schedule, spec.evaluation.every_steps, plan.total_steps - 1
    warming = min(schedule.warmup_steps, last) // every
    # Those of the warm-up are not counted, nor is the very first, which only sets the lowest loss.
    counted = max(0, last // every - max(1, warming))
    if counted < schedule.plateau.patience:
        yield (
            f"optimizer.schedule.plateau will not act: its patience is {schedule.plateau.patience}, and {counted} evaluations "
            "count before the last step; lower patience or evaluation.every_steps, or train longer"
        )
