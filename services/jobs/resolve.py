"""Defaults are filled in once, at submission; what is stored and digested says all that decides the weights.

Most defaults are read from where they are written, the rules of the fields; the ones that depend on other fields stand here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from google.protobuf.message import Message

from lockstep.contract.arithmetic import default_shards, point_interval
from lockstep.contract.rules import written_default
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.model_pb2 import Layer
from services.jobs.checks import BatchShards
from worker.specs import InitializerRecord, LayerRecord, ParallelRecord, ResidualRecord

# How the sentence on capped workers begins.
CAPPED: Final = "workers.max is "


def fill(spec: JobSpec) -> None:
    """Fills in, in place, what depends neither on the dataset nor on the model's records."""
    spec.name = spec.name or "job"
    spec.training.SetInParent()
    _fill_written(spec)
    if not spec.training.HasField("shards"):
        spec.training.shards = default_shards(spec.training.batch_size)
    workers = spec.workers
    if not workers.HasField("min"):
        workers.min = min(1, workers.max) if workers.HasField("max") else 1
    if not workers.HasField("max"):
        workers.max = workers.min
    if not spec.checkpoints.HasField("keep"):
        spec.checkpoints.keep = 3


def cap_workers(spec: JobSpec, shards: BatchShards) -> list[str]:
    """Bounds workers.max by the shards that have rows; gives a sentence where that is not as it was asked."""
    workers = spec.workers
    if not workers.max > shards.filled >= workers.min:
        return []
    warning = f"{CAPPED}{shards.filled}, not {workers.max}: {shards.sentence}, and a worker holds at least one"
    workers.max = shards.filled
    return [warning]


def fill_initializers(layers: Iterable[Layer], records: Sequence[LayerRecord]) -> None:
    """Writes down the initializer of each layer whose weights are drawn by one, those inside other layers included."""
    for layer, record in zip(layers, records, strict=True):
        if isinstance(record, ResidualRecord):
            fill_initializers(layer.residual.layers, record.layers)
            fill_initializers(layer.residual.shortcut, record.shortcut)
        elif isinstance(record, ParallelRecord):
            for branch, inner in zip(layer.parallel.branches, record.branches, strict=True):
                fill_initializers(branch.layers, inner)
        else:
            given = getattr(record, "initializer", None)
            message = getattr(layer, record.kind)
            if isinstance(given, InitializerRecord) and not message.HasField("initializer"):
                getattr(message.initializer, given.kind).SetInParent()


def fill_evaluation(spec: JobSpec, steps_per_epoch: int) -> None:
    """Evaluates at every epoch's end unless told otherwise; in a job of many epochs at so many that a curve holds them all."""
    if not spec.evaluation.HasField("every_steps"):
        spec.evaluation.every_steps = steps_per_epoch * point_interval(spec.training.epochs)


def _fill_written(message: Message) -> None:
    """Sets every field that is not set and whose rule gives a value as its default; messages that are not there stay away."""
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated:
            if field.message_type is not None and not field.message_type.GetOptions().map_entry:
                for item in getattr(message, field.name):
                    _fill_written(item)
        elif field.message_type is not None:
            if message.HasField(field.name):
                _fill_written(getattr(message, field.name))
        elif field.has_presence and field.containing_oneof is not None and field.containing_oneof.name != f"_{field.name}":
            continue  # a choice of somebody else's
        elif not (message.HasField(field.name) if field.has_presence else getattr(message, field.name)):
            value = written_default(field)
            if value is not None:
                setattr(message, field.name, value)
