"""The Model of a job: from the messages through the records to the object."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from lockstep.v1.job_spec_pb2 import JobSpec
from worker.nn.model import Model
from worker.nn.parameters import Array
from worker.nn.shapes import ParameterLayout
from worker.nn.update import Update
from worker.specs import architecture, clipping_record, loss_record, optimizer_record, penalty_record


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


def build_update(spec: JobSpec, layout: ParameterLayout) -> Update:
    """What a step of a resolved spec does to the parameters, given their layout."""
    return Update(optimizer_record(spec.optimizer), penalty_record(spec.loss), layout, clipping_record(spec.optimizer))
