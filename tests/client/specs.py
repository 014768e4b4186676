"""The job that the client's tests begin with."""

from __future__ import annotations

from lockstep import spec
from lockstep.v1 import job_spec_pb2

DIGITS = """\
name: digits-mlp
dataset: digits
validation_fraction: 0.2
model:
  layers:
    - dense: {units: 128}
    - relu: {}
    - dense: {units: 10}
loss: {softmax_cross_entropy: {}}
optimizer: {momentum: {learning_rate: 0.05, momentum: 0.9}}
training: {epochs: 20, batch_size: 128, seed: 7}
workers: {min: 1, max: 2}
"""


def digits() -> job_spec_pb2.JobSpec:
    """A new copy of the job as a message."""
    return spec.parse(DIGITS).spec
