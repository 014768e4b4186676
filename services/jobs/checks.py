"""What must hold between the parts of a job and its dataset, beyond the rules of single fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

from lockstep.contract.arithmetic import BATCH_STATISTICS_ROWS, filled_shards, validation_count
from lockstep.contract.digests import uses_controller
from lockstep.contract.errors import UserError, Violation
from lockstep.v1.dataset_service_pb2 import DatasetSchema
from lockstep.v1.job_spec_pb2 import JobSpec
from worker.nn.shapes import LayerShapes, check_against_dataset, flattened
from worker.specs import (
    Architecture,
    EmbeddingRecord,
    FlattenRecord,
    LossRecord,
    OptimizerRecord,
    ReshapeRecord,
    architecture,
    loss_record,
    optimizer_record,
)

T = TypeVar("T")


def records(
    spec: JobSpec, schema: DatasetSchema | None, wrong: list[Violation]
) -> tuple[Architecture | None, LossRecord | None, OptimizerRecord | None]:
    """The plain records of model, loss and optimizer; what is wrong with them is added to `wrong`."""
    shape = tuple(schema.input_shape) if schema is not None else (1,)
    model = _attempt(lambda: architecture(spec.model, shape), wrong)
    loss = _attempt(lambda: loss_record(spec.loss), wrong)
    optimizer = _attempt(lambda: optimizer_record(spec.optimizer), wrong)
    if schema is not None and model is not None and loss is not None:
        classes = schema.classes
        wrong += check_against_dataset(
            model,
            loss,
            classes=classes.count if schema.HasField("classes") else None,
            width=schema.numbers.width if schema.HasField("numbers") else None,
            positions=classes.positions if classes.HasField("positions") else None,
            no_label=classes.no_label if classes.HasField("no_label") else None,
        )
    return model, loss, optimizer


@final
@dataclass(frozen=True, slots=True)
class BatchShards:
    """How many shards of a whole mini-batch have rows, of how many there are."""

    rows: int
    shards: int
    filled: int

    @classmethod
    def of(cls, spec: JobSpec, model: Architecture | None, training_rows: int | None) -> BatchShards:
        """Of a filled-in spec; without a model nothing keeps shards from having few rows."""
        batch, shards = spec.training.batch_size, spec.training.shards
        rows = batch if training_rows is None else min(batch, training_rows)
        # With more shards than rows the others are empty, which harms nobody.
        filled = filled_shards(rows, shards, model.least_shard_rows) if model and model.least_shard_rows > 1 else shards
        return cls(rows, shards, filled)

    @property
    def sentence(self) -> str:
        """As a reason why there cannot be more workers."""
        shards = f"{self.filled} shard{'' if self.filled == 1 else 's'}"
        if self.filled == self.shards:
            return f"a mini-batch has {shards}"
        least = f"batch_norm wants {BATCH_STATISTICS_ROWS} rows in each shard of a mini-batch of {self.rows}"
        return f"{least}, enough for {shards}"


def learns(layers: Sequence[LayerShapes]) -> Iterator[Violation]:
    """A job needs something to learn."""
    if not any(layer.parameter_count for layer in layers):
        kinds = ", ".join(layer.kind for layer in layers[:5])
        yield Violation("model.layers", kinds, "no layer learns anything; add one that does, such as dense", "NOTHING_LEARNED")


def batch_statistics(spec: JobSpec, layers: Sequence[LayerShapes], training_rows: int) -> Iterator[Violation]:
    """Batch normalization takes a variance: two numbers a channel, in the smallest shard of any batch."""
    batch = spec.training.batch_size
    alone = 1 in (min(batch, training_rows), training_rows % batch)
    norms = [layer for layer in flattened(layers) if layer.record.batch_statistics]
    place = next((layer.place for layer in norms if math.prod(layer.input_shape[:-1]) == 1), "")
    if not (alone and place):
        return
    works = next((size for size in range(max(2, batch), training_rows + 1) if training_rows % size != 1), None)
    remedy = f"a batch of one row has one number a channel at model.{place}, and a variance takes two; "
    remedy += f"take {works}" if works is not None else "give the dataset more rows, or use layer_norm"
    yield Violation("training.batch_size", str(batch), remedy, "TOO_FEW_VALUES")


def indices(spec: JobSpec, layers: Sequence[LayerShapes], schema: DatasetSchema) -> Iterator[Violation]:
    """An embedding over the dataset's inputs takes whole numbers below its vocabulary."""
    for layer in _first_embeddings(layers):
        place = f"model.{layer.place}"
        assert isinstance(layer.record, EmbeddingRecord)
        if spec.preprocessing.HasField("standardize"):
            remedy = f"standardized inputs are no whole numbers, which {place} takes; leave it out"
            yield Violation("preprocessing.standardize", "", remedy, "INPUTS_ARE_NOT_INDICES")
            return
        if not schema.HasField("largest_index"):
            remedy = "it takes indices, and the dataset's inputs are not all whole numbers from 0 to 16,777,215"
            yield Violation(place, "", remedy, "INPUTS_ARE_NOT_INDICES")
        elif schema.largest_index >= layer.record.vocabulary:
            remedy = f"the dataset's largest index is {schema.largest_index}; give at least {schema.largest_index + 1}"
            yield Violation(f"{place}.vocabulary", str(layer.record.vocabulary), remedy, "INDEX_OUT_OF_RANGE")


def _first_embeddings(layers: Sequence[LayerShapes]) -> Iterator[LayerShapes]:
    """The embeddings that the network's input reaches as it is, or in another shape."""
    for layer in layers:
        if isinstance(layer.record, EmbeddingRecord):
            yield layer
        for branch in layer.branches:
            yield from _first_embeddings(branch)
        if not isinstance(layer.record, FlattenRecord | ReshapeRecord):
            return


def workers(spec: JobSpec, batch: BatchShards) -> Iterator[Violation]:
    """Bounds of workers against each other and against the shards."""
    least, most, shards = spec.workers.min, spec.workers.max, batch.filled
    if least > most:
        yield Violation("workers.min", str(least), f"it must be at most workers.max, {most}", "WORKERS_OUT_OF_RANGE")
    elif least > shards:
        yield Violation(
            "workers.min",
            str(least),
            f"{batch.sentence} and a worker holds at least one; ask for at most {shards}, or set "
            f"{'training.shards' if shards == batch.shards else 'a larger training.batch_size'}",
            "WORKERS_ABOVE_SHARDS",
        )


def plateau(spec: JobSpec) -> Iterator[Violation]:
    """What acts on evaluations needs rows to evaluate."""
    if uses_controller(spec) and spec.validation_fraction == 0:
        yield Violation(
            "optimizer.schedule.plateau",
            "validation_fraction 0",
            "it acts on the validation loss: set validation_fraction, 0.2 say, or take another schedule",
            "SCHEDULE_NEEDS_VALIDATION",
        )


def split(spec: JobSpec, rows: int) -> Iterator[Violation]:
    """The validation part must have rows, and leave some."""
    fraction = spec.validation_fraction
    if fraction == 0:
        return
    count = validation_count(rows, fraction)
    if count == 0:
        least = smallest_fraction(rows)
        remedy = f"of {rows:,} rows that keeps none; the smallest that keeps one is {least:g}, and 0 means no validation"
        if validation_count(rows, least) >= rows:
            remedy = f"of {rows:,} rows none can be spared; 0 means no validation"
        yield Violation("validation_fraction", f"{fraction:g}", remedy, "VALIDATION_HAS_NO_ROWS")
    elif count >= rows:
        yield Violation(
            "validation_fraction",
            f"{fraction:g}",
            f"of {rows:,} rows that leaves none to train on; take less",
            "TRAINING_HAS_NO_ROWS",
        )


def smallest_fraction(rows: int) -> float:
    """The smallest fraction with at most six digits that keeps a row."""
    exact = 0.5 / rows
    scale = 10.0 ** (5 - math.floor(math.log10(exact)))
    least = math.ceil(exact * scale) / scale
    while validation_count(rows, least) == 0:
        least += 1 / scale
    return float(f"{least:.6g}")


def _attempt(make: Callable[[], T], wrong: list[Violation]) -> T | None:
    try:
        return make()
    except UserError as error:
        wrong += error.violations
        return None
