"""A submission: what is filled in, what is capped, and what is refused, all at once."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from lockstep.contract.arithmetic import validation_count
from lockstep.contract.errors import UserError
from lockstep.v1.dataset_service_pb2 import ClassTarget, DatasetSchema, NumberTarget
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import TrainingJob
from services.jobs.checks import smallest_fraction
from services.jobs.submission import Submission, Version, prepare
from tests.services.specs import DIGEST, DIGITS, spec

VERSION = Version("digits", DIGEST, DIGITS)
PLATEAU = {"sgd": {"learning_rate": 0.1}, "schedule": {"plateau": {}}}


def refused(job: JobSpec, version: Version | None = VERSION, known: tuple[str, ...] = ("digits",)) -> dict[str, str]:
    with pytest.raises(UserError) as caught:
        prepare(job, version, known)
    return {violation.place: str(violation) for violation in caught.value.violations}


def test_an_unknown_version_of_a_known_dataset_is_told_from_an_unknown_dataset() -> None:
    versions = refused(spec(dataset="datasets/digits@deadbeef"), None)
    assert versions["dataset"].endswith("the dataset has no such version; `lockstep dataset show digits` lists them")
    assert (
        "there is no such dataset; did you mean datasets/digits? `lockstep dataset push` registers one"
        in refused(spec(dataset="datasets/digit"), None)["dataset"]
    )


def test_defaults_are_filled_in_once() -> None:
    job = prepare(spec(training={"epochs": 20, "batch_size": 128}, workers={}), VERSION).spec
    assert (job.training.seed, job.training.shards, job.workers.min, job.workers.max) == (0, 4, 1, 1)
    assert job.training.HasField("seed") and job.optimizer.momentum.momentum == 0.9
    assert job.model.layers[0].dense.bias and job.model.layers[0].dense.initializer.HasField("he_normal")
    assert job.model.layers[2].dense.initializer.HasField("glorot_uniform")
    assert job.checkpoints.keep == 3 and job.evaluation.every_steps == 12
    assert job.dataset == f"datasets/digits@{DIGEST}"


@pytest.mark.parametrize(
    ("batch", "shards"), [(1, 1), (32, 1), (63, 1), (64, 2), (127, 2), (128, 4), (255, 4), (256, 8), (100_000, 8)]
)
def test_the_shards_follow_from_the_batch_size_alone(batch: int, shards: int) -> None:
    for workers in (1, 2, 64):
        job = prepare(spec(training={"epochs": 1, "batch_size": batch}, workers={"max": workers}), VERSION)
        assert job.spec.training.shards == job.plan.shards == shards
        assert job.spec.workers.max == min(workers, shards)


def test_filling_in_again_changes_nothing() -> None:
    once = prepare(spec(), VERSION)
    again = prepare(once.spec, VERSION)
    assert again.spec == once.spec and again.arithmetic_digest == once.arithmetic_digest


def test_the_plan_counts() -> None:
    plan = prepare(spec(), VERSION).plan
    assert (plan.training_rows, plan.validation_rows, plan.steps_per_epoch, plan.total_steps) == (1438, 359, 12, 240)
    assert plan.parameters == 64 * 128 + 128 + 128 * 10 + 10
    assert [layer.name for layer in plan.layers] == ["0.dense", "1.relu", "2.dense"]


def test_workers_never_change_the_digest_and_a_cap_is_said() -> None:
    few, many = prepare(spec(workers={"max": 2}), VERSION), prepare(spec(workers={"max": 8}), VERSION)
    assert few.arithmetic_digest == many.arithmetic_digest
    assert many.spec.workers.max == 4 and "workers.max is 4, not 8" in many.warnings[0]
    assert few.warnings == []


def batch_normalized(**changes: Any) -> JobSpec:
    return spec(model={"layers": [{"dense": {"units": 16}}, {"batch_norm": {}}, {"dense": {"units": 10}}]}, **changes)


def test_batch_normalization_fills_fewer_shards_and_bounds_the_workers() -> None:
    training = {"epochs": 1, "batch_size": 20, "shards": 4}
    job = prepare(batch_normalized(training=training, workers={"min": 1, "max": 4}), VERSION)
    assert (job.plan.shards, job.plan.filled_shards, job.spec.workers.max) == (4, 2, 2)
    assert job.warnings == [
        "workers.max is 2, not 4: batch_norm wants 8 rows in each shard of a mini-batch of 20, enough for 2 shards, "
        "and a worker holds at least one"
    ]
    wrong = refused(batch_normalized(training=training, workers={"min": 3, "max": 4}))
    assert "enough for 2 shards" in wrong["workers.min"] and "a larger training.batch_size" in wrong["workers.min"]
    plain = prepare(spec(training=training, workers={"min": 1, "max": 4}), VERSION)
    assert (plain.plan.shards, plain.plan.filled_shards, plain.spec.workers.max) == (4, 4, 4)


@pytest.mark.parametrize("batch_size", [1, 479])  # 1,438 rows train: 479 leaves one of them alone
def test_batch_normalization_of_one_row_is_refused_with_the_batch_size_that_works(batch_size: int) -> None:
    wrong = refused(batch_normalized(training={"epochs": 1, "batch_size": batch_size}))
    assert (
        f"got {batch_size}; a batch of one row has one number a channel at model.layers[1].batch_norm"
        in wrong["training.batch_size"]
    )
    works = 2 if batch_size == 1 else 480
    assert wrong["training.batch_size"].endswith(f"take {works}")
    prepare(batch_normalized(training={"epochs": 1, "batch_size": works}), VERSION)


def test_what_decides_the_weights_changes_the_digest() -> None:
    def digest(job: Submission) -> str:
        return job.arithmetic_digest

    plain = digest(prepare(spec(), VERSION))
    assert digest(prepare(spec(training={"epochs": 20, "batch_size": 128, "seed": 8}), VERSION)) != plain
    assert digest(prepare(spec(name="other", labels={"team": "a"}), VERSION)) == plain
    assert digest(prepare(spec(), Version("digits", "cd" * 32, DIGITS))) != plain


def test_portable_arithmetic_and_skipped_steps_are_other_digests() -> None:
    training = {"epochs": 1, "batch_size": 8}
    native, same, portable = (
        prepare(spec(training=training | changes), VERSION).arithmetic_digest
        for changes in ({}, {"arithmetic": "NATIVE"}, {"arithmetic": "PORTABLE"})
    )
    assert native == same != portable
    skipping = prepare(spec(training=training, non_finite="SKIP_STEP"), VERSION).arithmetic_digest
    assert skipping != native == prepare(spec(training=training, non_finite="FAIL"), VERSION).arithmetic_digest


def test_a_batch_above_the_rows_is_one_short_batch_and_said() -> None:
    job = prepare(spec(training={"epochs": 2, "batch_size": 4096}), VERSION)
    assert job.plan.steps_per_epoch == 1 and "one short batch of 1,438 rows" in job.warnings[0]


def test_reduce_on_plateau_has_defaults_and_its_evaluations_decide() -> None:
    job = prepare(spec(optimizer=PLATEAU), VERSION)
    assert (job.spec.optimizer.schedule.plateau.factor, job.spec.optimizer.schedule.plateau.patience) == (0.1, 5)
    assert job.warnings == []
    other = prepare(spec(optimizer=PLATEAU, evaluation={"every_steps": 6}), VERSION)
    assert other.arithmetic_digest != job.arithmetic_digest


@pytest.mark.parametrize(
    # 12 steps an epoch: evaluations at 12, 24, ...; the first sets the lowest loss, the last changes nothing any more.
    ("epochs", "warmup", "said"),
    [(7, 0, None), (6, 0, "4 evaluations"), (1, 0, "0 evaluations"), (7, 12, None), (8, 24, None), (7, 24, "4 evaluations")],
)
def test_a_plateau_that_cannot_act_is_said(epochs: int, warmup: int, said: str | None) -> None:
    optimizer = {"sgd": {"learning_rate": 0.1}, "schedule": {"plateau": {}, "warmup_steps": warmup}}
    job = prepare(spec(optimizer=optimizer, training={"epochs": epochs, "batch_size": 128}), VERSION)
    assert [said is not None and said in warning for warning in job.warnings] == ([True] if said else [])


def test_all_violations_at_once() -> None:
    wrong = refused(
        spec(
            model={"layers": [{"dense": {"units": 128}}, {"relu": {}}, {"dense": {"units": 8}}]},
            optimizer={"momentum": {"learning_rate": "NaN"}},
            training={"epochs": 0, "batch_size": 128},
            workers={"min": 6, "max": 6},
            validation_fraction=0.0001,
        )
    )
    assert set(wrong) == {
        "model.layers[2].dense.units",
        "optimizer.momentum.learning_rate",
        "training.epochs",
        "workers.min",
        "validation_fraction",
    }
    assert "got 8; the dataset has 10 classes" in wrong["model.layers[2].dense.units"]
    assert "finite" in wrong["optimizer.momentum.learning_rate"]
    assert "got 6; a mini-batch has 4 shards" in wrong["workers.min"]
    assert "smallest that keeps one is 0.000278242" in wrong["validation_fraction"]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"optimizer": {"sgd": {"learning_rate": -0.1}}}, "optimizer.sgd.learning_rate"),
        ({"optimizer": {"sgd": {"learning_rate": "Infinity"}}}, "optimizer.sgd.learning_rate"),
        ({"optimizer": {"lamb": {"learning_rate": 0.1}, "clipping": {"value": 0}}}, "optimizer.clipping.value"),
        ({"model": {"layers": [{"dense": {"units": 10}}, {"attention": {"heads": 2}}]}}, "model.layers[1].attention"),
        ({"optimizer": PLATEAU, "validation_fraction": 0}, "optimizer.schedule.plateau"),
        ({"model": {"layers": [{}]}}, "model.layers[0]"),
        ({"loss": {"mean_squared_error": {}}}, "loss.mean_squared_error"),
        ({"workers": {"min": 3, "max": 2}}, "workers.min"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"validation_fraction": "NaN"}, "validation_fraction"),
        ({"validation_fraction": "Infinity"}, "validation_fraction"),
        ({"validation_fraction": -1e300}, "validation_fraction"),
        ({"model": {"layers": [{"parallel": {}}, {"dense": {"units": 10}}]}}, "model.layers[0].parallel.branches"),
        ({"name": "Digits"}, "name"),
        ({"labels": {"k": "v" * 64}}, "labels.k"),
    ],
)
def test_each_wrong_thing_is_named(changes: dict[str, object], place: str) -> None:
    assert list(refused(spec(**changes))) == [place]


def test_shapes_that_do_not_meet() -> None:
    images = Version("images", DIGEST, DatasetSchema(rows=100, input_shape=[8, 8], classes=ClassTarget(count=10)))
    wrong = refused(spec(), images)
    assert "flatten" in wrong["model.layers[2].dense"]


def test_outputs_of_numbers_must_be_as_many() -> None:
    numbers = Version("prices", DIGEST, DatasetSchema(rows=100, input_shape=[64], numbers=NumberTarget(width=1)))
    wrong = refused(spec(loss={"mean_squared_error": {}}), numbers)
    assert "exactly 1 output" in wrong["model.layers[2].dense.units"]


def test_labels_at_positions_need_outputs_at_them_and_a_label_to_ignore() -> None:
    target = ClassTarget(count=10, positions=64, no_label=-1)
    texts = Version("texts", DIGEST, DatasetSchema(rows=100, input_shape=[64], classes=target, largest_index=29))
    wrong = refused(spec(), texts)
    assert "a label at each of 64 positions" in wrong["model.layers[2].dense"]
    model = {"layers": [{"embedding": {"vocabulary": 30, "width": 4}}, {"dense": {"units": 10}}]}
    wrong = refused(spec(model=model), texts)
    assert wrong["loss.softmax_cross_entropy.ignored_label"].endswith("set ignored_label to -1")
    made = prepare(spec(model=model, loss={"softmax_cross_entropy": {"ignored_label": -1}}), texts)
    assert list(made.plan.layers[1].output_shape) == [64, 10]


def test_an_unknown_dataset_offers_likely_names() -> None:
    wrong = refused(spec(dataset="datasets/digit"), None, ("iris", "digits"))
    assert "did you mean datasets/digits?" in wrong["dataset"]
    assert "lockstep dataset push" in refused(spec(), None, ())["dataset"]


def test_an_empty_job_says_all_that_is_missing() -> None:
    assert set(refused(JobSpec(), None)) == {"dataset", "model", "loss", "optimizer", "training"}


@given(st.integers(1, 10**9))
def test_the_smallest_fraction_is_one_that_works_and_the_smallest_of_six_digits(rows: int) -> None:
    least = smallest_fraction(rows)
    assert validation_count(rows, least) >= 1
    assert validation_count(rows, least * (1 - 2e-5)) == 0


def test_a_resolved_spec_is_plain_json() -> None:
    text = json_format.MessageToJson(prepare(spec(), VERSION).spec, preserving_proto_field_name=True)
    assert json_format.Parse(text, JobSpec()) == prepare(spec(), VERSION).spec


def test_an_embedding_takes_the_datasets_indices() -> None:
    layers = [{"embedding": {"vocabulary": 10, "width": 4}}, {"global_pool": {}}, {"dense": {"units": 10}}]
    schema = DatasetSchema(rows=100, input_shape=[12], classes=ClassTarget(count=10))
    job = spec(model={"layers": layers}, preprocessing={})
    assert "not all whole numbers" in refused(job, Version("texts", DIGEST, schema))["model.layers[0].embedding"]
    schema.largest_index = 10
    wrong = refused(job, Version("texts", DIGEST, schema))
    assert "got 10; the dataset's largest index is 10; give at least 11" in wrong["model.layers[0].embedding.vocabulary"]
    inside = spec(model={"layers": [{"residual": {"layers": layers[:2], "shortcut": [{"dense": {"units": 4}}]}}, layers[2]]})
    inside.ClearField("preprocessing")
    assert "model.layers[0].residual.layers[0].embedding.vocabulary" in refused(inside, Version("texts", DIGEST, schema))
    schema.largest_index = 9
    prepare(job, Version("texts", DIGEST, schema))
    standardized = spec(model={"layers": layers}, preprocessing={"standardize": {}})
    assert list(refused(standardized, Version("texts", DIGEST, schema))) == ["preprocessing.standardize"]


def test_a_model_that_learns_nothing_is_refused() -> None:
    wrong = refused(spec(model={"layers": [{"relu": {}}, {"flatten": {}}]}))
    assert wrong["model.layers"].endswith("got relu, flatten; no layer learns anything; add one that does, such as dense")


def test_an_embedding_behind_another_layer_is_refused() -> None:
    texts = Version("texts", DIGEST, DatasetSchema(rows=100, input_shape=[12], classes=ClassTarget(count=10), largest_index=9))
    end = [{"global_pool": {}}, {"dense": {"units": 10}}]
    embedding = {"embedding": {"vocabulary": 10, "width": 4}}
    before: dict[str, Any]
    for before in ({"dense": {"units": 12}}, {"dropout": {"rate": 0.1}}, {"residual": {"layers": [{"gelu": {}}]}}):
        (kind,) = before
        wrong = refused(spec(model={"layers": [before, embedding, *end]}), texts)
        assert f"model.layers[0].{kind}" in wrong["model.layers[1].embedding"]
        assert wrong["model.layers[1].embedding"].endswith("makes something else; put it first")
    prepare(spec(model={"layers": [{"reshape": {"shape": [12]}}, embedding, *end]}), texts)


def test_layers_behind_a_wrong_one_are_not_judged() -> None:
    layers = [{"reshape": {"shape": [7, 9]}}, {"conv2d": {"filters": 3, "kernel": {"height": 3, "width": 3}}}, {"flatten": {}}]
    assert list(refused(spec(model={"layers": [*layers, {"dense": {"units": 10}}]}))) == ["model.layers[0].reshape"]


def test_a_gradient_check_has_no_notes_on_steps() -> None:
    schedule = {"plateau": {"factor": 0.5, "patience": 100}, "warmup_steps": 5000}
    training = {"epochs": 20, "batch_size": 100_000, "seed": 7}
    job = spec(training=training, optimizer={"sgd": {"learning_rate": 0.1}, "schedule": schedule})
    assert len(prepare(job, VERSION).warnings) == 3
    assert prepare(job, VERSION, kind=TrainingJob.GRADIENT_CHECK).warnings == []


def test_what_is_seldom_meant_is_said() -> None:
    layers = [{"dense": {"units": 10}}, {"softmax": {}}]
    schedule = {"constant": {}, "warmup_steps": 5000}
    job = prepare(spec(model={"layers": layers}, optimizer={"sgd": {"learning_rate": 0.1}, "schedule": schedule}), VERSION)
    assert job.warnings == [
        "optimizer.schedule.warmup_steps is 5,000, and the job has 240 steps: the learning rate never reaches its full size",
        "model.layers[1].softmax: softmax_cross_entropy applies it by itself, to outputs without it; leave the layer out",
    ]
