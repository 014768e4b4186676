"""Jobs and datasets for the API server's tests."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format

from lockstep.v1.dataset_service_pb2 import ClassTarget, DatasetSchema
from lockstep.v1.job_spec_pb2 import JobSpec

DIGITS = DatasetSchema(rows=1797, input_shape=[64], classes=ClassTarget(count=10), size_bytes=470_000)
DIGEST = "ab" * 32


def spec(**changes: Any) -> JobSpec:
    """The digits job, with some fields of its JSON replaced."""
    fields: dict[str, Any] = {
        "name": "digits-mlp",
        "dataset": "datasets/digits",
        "validation_fraction": 0.2,
        "model": {"layers": [{"dense": {"units": 128}}, {"relu": {}}, {"dense": {"units": 10}}]},
        "loss": {"softmax_cross_entropy": {}},
        "optimizer": {"momentum": {"learning_rate": 0.05}},
        "training": {"epochs": 20, "batch_size": 128, "seed": 7},
        "workers": {"min": 1, "max": 2},
    }
    return json_format.ParseDict({**fields, **changes}, JobSpec())
