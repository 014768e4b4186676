"""The Model of a job: from the messages through the records to the object."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from lockstep.v1.job_spec_pb2 import JobSpec
from worker.nn.model import Model
from worker.nn.optimizers import Optimizer, build_optimizer
from worker.nn.parameters import Array
from worker.specs import architecture, loss_record, optimizer_record


def build_model(
    spec: JobSpec,
    input_shape: tuple[int, ...],
    *,
    dtype: DTypeLike = np.float32,
    parameters: Array | None = None,
    gradients: Array | None = None,
) -> Model:
    """The model of a resolved spec, in the vectors given or in new ones. Raises UserError as `worker.specs` does."""
    return Model(
        architecture(spec.model, input_shape),
        loss_record(spec.loss),
        seed=spec.training.seed,
        dtype=dtype,
        parameters=parameters,
        gradients=gradients,
    )


def build_optimizer_of(spec: JobSpec) -> Optimizer:
    """The optimizer of a resolved spec."""
    return build_optimizer(optimizer_record(spec.optimizer))
