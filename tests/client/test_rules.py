"""Every rule of the protos is kept by the one checker, and NaN gets through none."""

from __future__ import annotations

import math

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import Default

from lockstep.contract import rules
from lockstep.v1 import dataset_service_pb2, job_spec_pb2, training_job_pb2, training_job_service_pb2
from tests.client.specs import digits


def told(spec: job_spec_pb2.JobSpec) -> list[str]:
    return [str(violation) for violation in rules.check(spec)]


def test_a_valid_job_has_no_violation() -> None:
    assert told(digits()) == []


def test_nothing_at_all_lacks_all_that_is_required() -> None:
    assert told(job_spec_pb2.JobSpec()) == [
        "dataset: it is required",
        "model: it is required",
        "loss: it is required",
        "optimizer: it is required",
        "training: it is required",
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_by_every_field(bad: float) -> None:
    spec = digits()
    spec.optimizer.momentum.learning_rate = bad
    spec.optimizer.momentum.momentum = bad
    spec.loss.l1 = bad
    spec.validation_fraction = bad
    spec.loss.softmax_cross_entropy.class_weights.append(bad)
    found = rules.check(spec)
    assert {violation.reason for violation in found} == {"FIELD_NOT_FINITE"}
    assert [violation.place for violation in found] == [
        "validation_fraction",
        "loss.softmax_cross_entropy.class_weights[0]",
        "loss.l1",
        "optimizer.momentum.learning_rate",
        "optimizer.momentum.momentum",
    ]


@pytest.mark.parametrize("bad", [1e39, 1e-46])
def test_a_number_that_is_infinite_or_0_in_single_precision_is_refused(bad: float) -> None:
    """An epsilon of 0 makes 0 / 0 of a weight without a gradient, and a learning rate of 0 learns nothing."""
    spec = digits()
    spec.optimizer.adam.learning_rate = bad
    spec.optimizer.adam.epsilon = bad
    spec.loss.huber.delta = bad
    spec.model.layers.add().layer_norm.epsilon = bad
    found = rules.check(spec)
    assert {(violation.reason, "single precision" in violation.remedy) for violation in found} == {("FIELD_OUT_OF_RANGE", True)}
    assert [violation.place for violation in found] == [
        f"model.layers[{len(spec.model.layers) - 1}].layer_norm.epsilon",
        "loss.huber.delta",
        "optimizer.adam.learning_rate",
        "optimizer.adam.epsilon",
    ]
    for good in (1.5e-45, 3.4e38):
        spec.optimizer.adam.learning_rate = spec.optimizer.adam.epsilon = spec.loss.huber.delta = good
        spec.model.layers[-1].layer_norm.epsilon = good
        assert rules.check(spec) == []
    spec.validation_fraction = 1e-46  # no number of the arithmetic
    spec.loss.l2 = 1e-46  # may be 0
    assert rules.check(spec) == []


def test_every_real_number_of_the_contract_that_people_set_refuses_nan() -> None:
    """Over the descriptors: no field of a job can be NaN, with rules or without."""
    tried = 0

    def walk(descriptor: Descriptor, seen: set[str]) -> None:
        nonlocal tried
        for field in rules.fields_of(descriptor):
            if field.type in rules.REALS and not rules.rules_of(field).output_only:
                tried += 1
                assert list(rules.check_value(field, rules.rules_of(field), math.nan, "x")), field.full_name
            inner = field.message_type
            if inner is not None and inner.full_name not in seen:
                walk(inner, seen | {inner.full_name})

    walk(job_spec_pb2.JobSpec.DESCRIPTOR, set())
    assert tried > 30


def test_bounds() -> None:
    spec = digits()
    spec.optimizer.momentum.learning_rate = -0.1
    spec.optimizer.momentum.momentum = 1.0
    spec.loss.l2 = -1
    spec.model.layers[0].dense.units = 2**21
    spec.model.layers.add().dropout.rate = 1.0
    assert told(spec) == [
        "model.layers[0].dense.units: got 2097152; it must be at most 1,048,576",
        "model.layers[3].dropout.rate: got 1.0; it must be below 1",
        "loss.l2: got -1.0; it must be at least 0",
        "optimizer.momentum.learning_rate: got -0.1; it must be above 0",
        "optimizer.momentum.momentum: got 1.0; it must be below 1",
    ]


def test_a_zero_without_presence_is_missing_unless_the_caller_knows_that_it_stood_there() -> None:
    spec = digits()
    spec.training.epochs = 0
    assert told(spec) == ["training.epochs: it is required and must be at least 1"]
    given = rules.check(spec, given={"training.epochs"})
    assert [str(violation) for violation in given] == ["training.epochs: got 0; it must be at least 1"]


def test_a_rate_of_zero_is_a_rate() -> None:
    spec = digits()
    spec.model.layers.add().dropout.SetInParent()
    assert told(spec) == ["model.layers[3].dropout.rate: it is required"]
    spec.model.layers[3].dropout.rate = 0
    assert told(spec) == []


def test_a_choice_must_be_made() -> None:
    spec = digits()
    spec.loss.Clear()
    spec.loss.l1 = 1
    spec.model.layers.add()
    assert [violation.place for violation in rules.check(spec)] == ["model.layers[3]", "loss"]
    assert told(spec)[0] == (
        "model.layers[3]: exactly one of dense, relu, flatten, conv2d, conv1d, max_pool, ... must be given"
    )


def test_patterns_match_the_whole_text() -> None:
    spec = digits()
    spec.name = "digits-"
    spec.dataset = "datasets/digits\n"
    assert [violation.reason for violation in rules.check(spec)] == ["FIELD_PATTERN", "FIELD_PATTERN"]
    assert 'got "datasets/digits\\n"; it must match' in told(spec)[1]


def test_labels() -> None:
    spec = digits()
    spec.labels.update({"team": "a", "Team": "b", "long": "x" * 64, "empty": ""})
    found = rules.check(spec)
    assert [(violation.place, violation.reason) for violation in found] == [
        ("labels.Team", "FIELD_PATTERN"),
        ("labels.long", "FIELD_TOO_LONG"),
    ]
    spec.labels.clear()
    spec.labels.update({f"k{index}": "" for index in range(65)})
    assert told(spec) == ["labels: got 65 items; it must have at most 64"]


def test_numbers_of_items() -> None:
    spec = digits()
    spec.model.layers.add().reshape.shape.extend([1, 0, 1, 1, 1])
    spec.model.layers.add().parallel.branches.add()
    assert told(spec) == [
        "model.layers[3].reshape.shape: got 5 items; it must have at most 4",
        "model.layers[4].parallel.branches: got 1 items; it must have at least 2",
    ]
    del spec.model.layers[3].reshape.shape[2:]
    assert told(spec)[0] == "model.layers[3].reshape.shape[1]: got 0; it must be at least 1"
    del spec.model.layers[:]
    assert told(spec) == ["model.layers: it is required"]


def test_an_enum_value_that_nobody_knows() -> None:
    spec = digits()
    spec.training.arithmetic = 9  # type: ignore[assignment]
    assert told(spec) == ["training.arithmetic: got 9; it must be one of NATIVE, PORTABLE"]


def test_nested_layers_are_checked_at_their_place() -> None:
    spec = digits()
    spec.model.layers.add().residual.layers.add().dense.units = 0
    assert told(spec) == ["model.layers[3].residual.layers[0].dense.units: it is required and must be at least 1"]


def test_what_the_server_fills_is_passed_over() -> None:
    job = training_job_pb2.TrainingJob(name="not a name", spec=digits())
    job.progress.loss = math.nan
    assert rules.check(training_job_service_pb2.CreateTrainingJobRequest(training_job=job)) == []


def test_paths_begin_with_the_prefix() -> None:
    assert rules.check(job_spec_pb2.Training(epochs=1), "spec.training")[0].place == "spec.training.batch_size"


def test_an_upload_header() -> None:
    header = dataset_service_pb2.UploadHeader(dataset_id="Iris", request_id="1", sha256="0" * 64)
    header.csv.delimiter = ""
    assert [violation.place for violation in rules.check(header)] == [
        *("", "dataset_id", "request_id", "size_bytes", "csv.label", "csv.delimiter")[1:]
    ]


def test_a_long_value_is_cut_in_the_message() -> None:
    spec = digits()
    spec.name = "A" * 100_000
    assert len(told(spec)[0]) < 250


def test_every_pattern_of_the_contract_compiles_and_every_bound_has_an_order() -> None:
    pool = Default()
    checked = 0
    for name in ("job_spec", "model", "optimization", "training_job", "training_job_service", "dataset_service"):
        for message in pool.FindFileByName(f"lockstep/v1/{name}.proto").message_types_by_name.values():
            for field in rules.fields_of(message):
                of = rules.rules_of(field)
                checked += 1
                low = of.gt if of.HasField("gt") else of.gte if of.HasField("gte") else -math.inf
                high = of.lt if of.HasField("lt") else of.lte if of.HasField("lte") else math.inf
                assert low < high, field.full_name
    assert checked > 100
