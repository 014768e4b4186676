"""The Plan: what a job will do, computed from its filled-in spec and its dataset alone."""

from __future__ import annotations

from typing import Final

from lockstep.contract.arithmetic import filled_shards, validation_count
from lockstep.v1.dataset_service_pb2 import DatasetSchema
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import LayerPlan, Plan
from worker.nn.shapes import Role, layer_shapes, layout_of, parameter_layout, worker_memory_bytes
from worker.specs import Architecture, LossRecord, OptimizerRecord

# Headers and the manifest of a checkpoint, without the names of tensors.
CHECKPOINT_FLOOR_BYTES: Final = 4096
NAME_BYTES: Final = 128


def make_plan(spec: JobSpec, schema: DatasetSchema, model: Architecture, loss: LossRecord, optimizer: OptimizerRecord) -> Plan:
    """Counts and sizes. The spec is valid and filled in."""
    validation_rows = validation_count(schema.rows, spec.validation_fraction)
    training_rows = schema.rows - validation_rows
    steps = -(-training_rows // spec.training.batch_size)
    batch_size = min(spec.training.batch_size, training_rows)
    layers = layer_shapes(model)
    states = len(optimizer.state_names)
    entries = layout_of(layers).entries
    parameters = sum(layer.parameter_count for layer in layers)
    return Plan(
        training_rows=training_rows,
        validation_rows=validation_rows,
        steps_per_epoch=steps,
        total_steps=steps * spec.training.epochs,
        shards=spec.training.shards,
        filled_shards=filled_shards(batch_size, spec.training.shards, model.least_shard_rows),
        parameters=parameters,
        worker_memory_bytes=worker_memory(spec, training_rows, model, loss, optimizer),
        checkpoint_bytes=4 * parameters * (1 + states) + CHECKPOINT_FLOOR_BYTES + NAME_BYTES * len(entries) * (1 + states),
        layers=[
            LayerPlan(name=layer.name, output_shape=layer.output_shape, parameters=layer.parameter_count) for layer in layers
        ],
    )


def worker_memory(spec: JobSpec, training_rows: int, model: Architecture, loss: LossRecord, optimizer: OptimizerRecord) -> int:
    """Bytes that one worker is expected to hold at the most, where there are as few workers as the job can have."""
    return worker_memory_bytes(
        model,
        loss,
        batch_size=min(spec.training.batch_size, training_rows),
        shards=spec.training.shards,
        workers=spec.workers.min,
        optimizer_states=len(optimizer.state_names),
    )


def of_gradient_check(plan: Plan, model: Architecture) -> Plan:
    """The Plan of a job that only compares gradients: its steps are the learned tensors; it has no checkpoints."""
    learned = [entry for entry in parameter_layout(model).entries if entry.role is not Role.STATE]
    checked = Plan()
    checked.CopyFrom(plan)
    checked.total_steps, checked.checkpoint_bytes = len(learned), 0
    # The parameters and their gradient in float64, beside those of the training.
    checked.worker_memory_bytes += 2 * 8 * plan.parameters
    return checked
