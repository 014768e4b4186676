"""The arithmetic digest: a golden file that must never change, what decides it, and what does not."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from lockstep.contract.digests import arithmetic_digest, request_digest
from lockstep.v1 import job_spec_pb2, training_job_service_pb2
from tests.client.specs import digits

GOLDEN = json.loads((Path(__file__).parent / "golden" / "arithmetic_digest.json").read_text())

DATASET = "d" * 64

Change = Callable[[job_spec_pb2.JobSpec], Any]


def digest(spec: job_spec_pb2.JobSpec) -> str:
    return arithmetic_digest(spec, DATASET, 1)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: str(case["name"]))
def test_recorded_digests_never_change(case: dict[str, Any]) -> None:
    spec = ParseDict(case["spec"], job_spec_pb2.JobSpec())
    assert arithmetic_digest(spec, case["dataset_digest"], case["arithmetic_version"]) == case["digest"]


def test_the_digest_is_what_it_says() -> None:
    text = (
        '{"arithmetic_version":1,"dataset_digest":"' + DATASET + '","loss":{"softmax_cross_entropy":{}},'
        '"model":{"layers":[{"dense":{"units":128}},{"relu":{}},{"dense":{"units":10}}]},'
        '"optimizer":{"momentum":{"learning_rate":0.05,"momentum":0.9}},'
        '"training":{"batch_size":128,"epochs":20,"seed":7},"validation_fraction":0.2}'
    )
    assert digest(digits()) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: setattr(spec, "name", "other"),
        lambda spec: spec.labels.update({"team": "a"}),
        lambda spec: setattr(spec, "dataset", "datasets/other"),  # its digest is what counts
        lambda spec: setattr(spec.workers, "max", 8),
        lambda spec: setattr(spec.checkpoints, "every_steps", 3),
        lambda spec: setattr(spec.evaluation, "every_steps", 3),
        lambda spec: spec.preprocessing.SetInParent(),
    ],
)
def test_what_decides_no_weight_changes_no_digest(change: Change) -> None:
    spec = digits()
    change(spec)
    assert digest(spec) == digest(digits())


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.preprocessing.standardize.SetInParent(),
        lambda spec: setattr(spec, "validation_fraction", 0.25),
        lambda spec: setattr(spec, "non_finite", job_spec_pb2.SKIP_STEP),
        lambda spec: setattr(spec.training, "shards", 2),
        lambda spec: setattr(spec.training, "seed", 2**64 - 1),
        lambda spec: setattr(spec.training, "epochs", 21),
        lambda spec: setattr(spec.training, "arithmetic", job_spec_pb2.PORTABLE),
        lambda spec: spec.model.layers.add().relu.SetInParent(),
        lambda spec: setattr(spec.model.layers[0].dense, "bias", False),
        lambda spec: setattr(spec.loss, "l1", 0.0),  # it has presence: given is not the same as not given
        lambda spec: setattr(spec.optimizer.momentum, "momentum", math.nextafter(0.9, 1)),
        lambda spec: spec.optimizer.schedule.cosine.SetInParent(),
    ],
)
def test_what_decides_the_weights_changes_the_digest(change: Change) -> None:
    spec = digits()
    change(spec)
    assert digest(spec) != digest(digits())


def test_evaluation_counts_where_a_controller_looks_at_it() -> None:
    spec = digits()
    spec.optimizer.schedule.plateau.SetInParent()
    before = digest(spec)
    spec.evaluation.every_steps = 3
    assert digest(spec) != before


def test_dataset_and_version_count() -> None:
    assert len({digest(digits()), arithmetic_digest(digits(), "e" * 64, 1), arithmetic_digest(digits(), DATASET, 2)}) == 3


def test_a_negative_zero_says_what_zero_says() -> None:
    spec, other = digits(), digits()
    spec.loss.l1, other.loss.l1 = -0.0, 0.0
    assert digest(spec) == digest(other)


def test_what_is_not_finite_has_no_digest() -> None:
    spec = digits()
    spec.loss.l1 = math.nan
    with pytest.raises(ValueError, match="JSON compliant"):
        digest(spec)


def test_requests_are_equal_when_their_content_is() -> None:
    def request(labels: dict[str, str]) -> training_job_service_pb2.CreateTrainingJobRequest:
        made = training_job_service_pb2.CreateTrainingJobRequest(request_id="a")
        made.training_job.spec.CopyFrom(digits())
        made.training_job.spec.labels.update(labels)
        return made

    assert request_digest(request({"a": "1", "b": "2"})) == request_digest(request({"b": "2", "a": "1"}))
    assert request_digest(request({})) != request_digest(request({"a": "1"}))
    cancel = training_job_service_pb2.CancelTrainingJobRequest(name="jobs/a")
    assert request_digest(cancel) != request_digest(training_job_service_pb2.DeleteTrainingJobRequest(name="jobs/a"))
