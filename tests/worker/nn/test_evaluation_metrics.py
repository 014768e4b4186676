"""Each metric against its formula, written out in float64 over all rows at once, and the same bits for any split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from coordinator.evaluation import Evaluation, combine
from lockstep.contract.errors import UserError
from lockstep.internal.v1 import worker_pb2 as pb
from worker.collective.tree import fold, owned_shards, subtrees
from worker.evaluation import add_counts, sums_message
from worker.nn.metrics import Counts, Moments, Sums, block_metrics
from worker.nn.metrics.block import BLOCK_OUTPUTS, ClassMetrics
from worker.nn.metrics.counts import score_bins
from worker.nn.metrics.values import area_under_the_curve, exp, r2
from worker.nn.model import Model
from worker.specs import (
    Architecture,
    BinaryCrossEntropyRecord,
    DenseRecord,
    HuberRecord,
    InitializerRecord,
    LossRecord,
    MeanSquaredErrorRecord,
    ResidualRecord,
    SoftmaxCrossEntropyRecord,
)

BLOCK = 256
ZEROS = InitializerRecord("zeros")
SOFTMAX = SoftmaxCrossEntropyRecord()
F64 = NDArray[np.float64]


def outputs_model(loss: LossRecord, shape: tuple[int, ...]) -> Model:
    """A model whose outputs are its inputs: a residual layer whose path gives zeros."""
    path = (DenseRecord(1, False, ZEROS), DenseRecord(shape[-1], False, ZEROS))
    return Model(Architecture((ResidualRecord(path, ()),), shape), loss)


def evaluate(model: Model, x: Any, y: Any, workers: int = 1, positions: bool = False) -> Evaluation:
    """As `workers` workers and the coordinator evaluate all rows."""
    blocks = -(-len(x) // BLOCK)
    replies = []
    for rank in range(workers):
        counts, reply = model.new_counts(), pb.EvaluateReply()

        def block(first: int, end: int, counts: Counts = counts) -> Sums | None:
            rows = slice(first * BLOCK, end * BLOCK)
            return model.evaluate_block(x[rows], y[rows], counts) if end - first == 1 else None

        owned = owned_shards(rank, workers, blocks)
        with np.errstate(all="ignore"):
            for first, end in subtrees(0, blocks, *owned):
                sums = fold(first, end, block, Sums.plus)
                assert sums is not None
                reply.sums.append(sums_message(first, end, sums))
        if owned[0] < owned[1]:
            add_counts(reply, counts)
        replies.append(pb.EvaluateReply.FromString(reply.SerializeToString()))
    return combine(replies, len(x), positions)


def draw(rows: int, *shape: int, seed: int = 3) -> NDArray[np.float32]:
    """Outputs, most of them between -6 and 6."""
    return (3 * np.random.default_rng(seed).normal(size=(rows, *shape))).astype(np.float32)


def log_losses(z: F64, y: NDArray[np.int64]) -> F64:
    shifted = z - z.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=-1))
    picked = np.take_along_axis(shifted, y[..., None], axis=-1)[..., 0]
    return np.asarray(log_sum - picked)


def exact_auc(scores: Any, y: Any) -> float:
    ones, zeros = scores[y == 1].astype(np.float64), scores[y == 0].astype(np.float64)
    higher = (ones[:, None] > zeros).sum() + 0.5 * (ones[:, None] == zeros).sum()
    return float(higher / (len(ones) * len(zeros)))


def per_class(y: Any, predicted: Any, classes: int) -> list[tuple[float, float, float]]:
    found = []
    for label in range(classes):
        right = float(((y == label) & (predicted == label)).sum())
        support, said = float((y == label).sum()), float((predicted == label).sum())
        precision, recall = right / said if said else 0.0, right / support if support else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        if support or said:
            found.append((precision, recall, f1))
    return found


# Classes


@pytest.mark.parametrize("classes", [2, 3, 6, 40])
def test_metrics_of_classes_are_their_formulas(classes: int) -> None:
    x, y = draw(1500, classes), np.random.default_rng(1).integers(0, classes, 1500)
    x[np.arange(1500), y] += 1
    found = evaluate(outputs_model(SOFTMAX, (classes,)), x, y)
    predicted = x.argmax(axis=1)
    assert found.accuracy == (predicted == y).mean()
    expected = np.mean(per_class(y, predicted, classes), axis=0)
    assert [found.metrics[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected, rel=1e-14)
    assert found.metrics["log_loss"] == found.loss == pytest.approx(log_losses(x.astype(np.float64), y).mean(), rel=1e-6)
    assert "perplexity" not in found.metrics and "mean_squared_error" not in found.metrics
    # The five largest, the earlier of equal ones first.
    top = [label in np.argsort(-row, kind="stable")[:5] for row, label in zip(x, y, strict=True)]
    assert found.metrics.get("top_5_accuracy") == (np.mean(top) if classes > 5 else None)
    assert ("auc" in found.metrics) == ("class_1_f1" in found.metrics) == (classes == 2)
    assert found.classes["support"] == np.bincount(y, minlength=classes).tolist()
    assert found.classes["predicted"] == np.bincount(predicted, minlength=classes).tolist()
    assert found.classes["correct"] == np.bincount(y[predicted == y], minlength=classes).tolist()


def test_log_loss_leaves_the_options_of_the_loss_out() -> None:
    record = SoftmaxCrossEntropyRecord(label_smoothing=0.2, class_weights=(1.0, 2.0, 5.0), ignored_label=2)
    x, y = draw(700, 3), np.random.default_rng(1).integers(0, 3, 700)
    found = evaluate(outputs_model(record, (3,)), x, y)
    counted = y != 2
    assert found.metrics["log_loss"] == pytest.approx(log_losses(x.astype(np.float64), y)[counted].mean(), rel=1e-6)
    assert found.loss != pytest.approx(found.metrics["log_loss"], rel=1e-3)
    assert found.accuracy == (x.argmax(axis=1) == y)[counted].mean()


def test_equal_outputs_are_taken_in_their_order_by_the_first_five_too() -> None:
    x, y = np.ones((7, 7), np.float32), np.arange(7)
    found = evaluate(outputs_model(SOFTMAX, (7,)), x, y)
    assert (found.accuracy, found.metrics["top_5_accuracy"]) == (1 / 7, 5 / 7)


def test_a_class_without_labels_or_predictions_has_no_place_in_the_means() -> None:
    x = np.array([[2, 1, 0, 0], [2, 1, 0, 0], [0, 0, 3, 0]], np.float32)
    found = evaluate(outputs_model(SOFTMAX, (4,)), x, np.array([0, 1, 2]))
    assert found.metrics["precision"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert found.metrics["recall"] == pytest.approx((1 + 0 + 1) / 3)
    assert found.metrics["f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_many_classes_have_counts_and_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = 20_000
    x, y = np.zeros((300, classes), np.float32), np.arange(300) * 50
    x[np.arange(300), y] = 1
    x[7, 3] = 2
    model = outputs_model(SOFTMAX, (classes,))
    assert classes * BLOCK > BLOCK_OUTPUTS
    found = evaluate(model, x, y)
    assert found.accuracy == 299 / 300 and found.metrics["top_5_accuracy"] == 1
    assert len(found.classes["support"]) == classes and sum(found.classes["correct"]) == 299
    assert model.new_counts().scores.size == 0


# Two classes


@given(st.integers(0, 2**32), st.sampled_from([1e-6, 1.0, 50.0, 1e6]))
def test_the_area_under_the_curve_keeps_its_bound(seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, 400)
    scores = ((random.normal(size=400) + y) * scale).astype(np.float32)
    scores[::7] = scores[3]
    metrics, counts = block_metrics(BinaryCrossEntropyRecord(), (1,)), Counts(2)
    for first in range(0, 400, 100):
        part = slice(first, first + 100)
        metrics.measure(scores[None, None, part], y[None, part], 100, counts)
    bins = {int(score): (int(counts.scores[0, score]), int(counts.scores[1, score])) for score in score_bins(scores)}
    found = area_under_the_curve(bins)
    assert found is not None
    shared = sum(zeros * ones for zeros, ones in bins.values()) / (sum(y) * (400 - sum(y)))
    assert abs(found - exact_auc(scores, y)) <= shared / 2 + 1e-15
    if scale == 1:
        assert abs(found - exact_auc(scores, y)) < 1e-3


def test_bins_rise_with_scores_and_hold_what_is_near() -> None:
    random = np.random.default_rng(0)
    scores = np.sort((random.normal(size=100_000) * 10.0 ** random.uniform(-8, 6, 100_000)).astype(np.float32))
    bins = score_bins(scores).astype(np.int64)
    assert (np.diff(bins) >= 0).all()
    left, right = scores[:-1].astype(np.float64), scores[1:].astype(np.float64)
    together = np.diff(bins) == 0
    near = right - left <= np.maximum(2.0**-10 * np.maximum(np.abs(left), np.abs(right)), 2.0**-24)
    beyond = np.minimum(np.abs(left), np.abs(right)) >= 65_520
    assert (~together | near | beyond).all()
    assert len(set(score_bins(np.array([0.0, -0.0, 1e-12, -1e-12], np.float32)).tolist())) == 1
    assert score_bins(np.array([-np.inf, np.inf], np.float32)).tolist() == [0x03FF, 0xFC00]


def test_both_losses_of_two_classes_give_the_same_ranking() -> None:
    x, y = draw(900, 2), np.random.default_rng(1).integers(0, 2, 900)
    x[np.arange(900), y] += 0.5
    x[0] = 1  # neither is larger: class 0
    softmax = evaluate(outputs_model(SOFTMAX, (2,)), x, y)
    scores = x[:, 1] - x[:, 0]
    binary = evaluate(outputs_model(BinaryCrossEntropyRecord(), (1,)), np.ascontiguousarray(scores[:, None]), y)
    assert softmax.metrics["auc"] == binary.metrics["auc"] == pytest.approx(exact_auc(scores, y), abs=1e-4)
    assert softmax.classes == binary.classes
    predicted = (scores > 0).astype(int)
    precision, recall, f1 = per_class(y, predicted, 2)[1]
    of_class_1 = [binary.metrics[f"class_1_{name}"] for name in ("precision", "recall", "f1")]
    assert of_class_1 == pytest.approx([precision, recall, f1], rel=1e-14)
    assert binary.metrics["log_loss"] == pytest.approx(softmax.metrics["log_loss"], rel=1e-5)


def test_what_is_0_by_0_has_no_value() -> None:
    x, y = np.array([[2.0, 1.0], [3.0, 1.0]], np.float32), np.array([0, 0])
    found = evaluate(outputs_model(SOFTMAX, (2,)), x, y)
    assert found.accuracy == 1
    assert not {"auc", "class_1_precision", "class_1_recall", "class_1_f1"} & set(found.metrics)
    nothing = evaluate(outputs_model(SoftmaxCrossEntropyRecord(ignored_label=0), (2,)), x, y)
    assert (nothing.accuracy, nothing.metrics, nothing.loss) == (None, {}, 0.0)


def test_numbers_that_are_not_finite_give_no_metric_that_is_not() -> None:
    x, y = draw(300, 2), np.arange(300) % 2
    x[5] = np.nan
    found = evaluate(outputs_model(SOFTMAX, (2,)), x, y)
    assert math.isnan(found.loss) and found.accuracy is not None
    assert "auc" not in found.metrics and "log_loss" not in found.metrics
    numbers = evaluate(outputs_model(MeanSquaredErrorRecord(), (2,)), x, draw(300, 2, seed=1))
    assert math.isnan(numbers.loss) and numbers.metrics == {}
    six = np.full((3, 6), np.nan, np.float32)
    assert evaluate(outputs_model(SOFTMAX, (6,)), six, np.arange(3)).metrics["top_5_accuracy"] == 0


# Positions


def test_metrics_of_positions_count_those_with_a_label() -> None:
    x, y = draw(600, 9, 7), np.random.default_rng(1).integers(0, 7, (600, 9))
    y[np.random.default_rng(2).random((600, 9)) < 0.3] = -100
    found = evaluate(outputs_model(SoftmaxCrossEntropyRecord(ignored_label=-100), (9, 7)), x, y, positions=True)
    counted = y != -100
    z, labels = x[counted], y[counted]
    assert found.accuracy == (z.argmax(axis=1) == labels).mean()
    loss = log_losses(z.astype(np.float64), labels).mean()
    assert found.metrics["log_loss"] == pytest.approx(loss, rel=1e-6)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(found.metrics["log_loss"]), rel=1e-15)
    assert sum(found.classes["support"]) == counted.sum()
    top = [label in np.argsort(-row, kind="stable")[:5] for row, label in zip(z, labels, strict=True)]
    assert found.metrics["top_5_accuracy"] == np.mean(top)


def test_a_label_that_cannot_be_is_refused_before_it_is_counted() -> None:
    model = outputs_model(SOFTMAX, (4, 3))
    counts = model.new_counts()
    with pytest.raises(UserError, match="the label -100"):
        model.evaluate_block(draw(2, 4, 3), np.full((2, 4), -100), counts)
    assert not counts.support.any()


def test_predictions_of_positions_are_as_many_as_rows_and_positions() -> None:
    x = draw(300, 4, 3)
    assert np.array_equal(outputs_model(SOFTMAX, (4, 3)).predict(x), x)


def test_a_perplexity_beyond_all_numbers_has_no_value() -> None:
    assert exp(0.0) == 1 and exp(709.0) == pytest.approx(math.exp(709)) and exp(710.0) is None


# Numbers


@pytest.mark.parametrize("outputs", [1, 3, 1500])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_metrics_of_numbers_are_their_formulas(outputs: int, offset: float) -> None:
    y = (np.random.default_rng(1).normal(size=(700, outputs)) + offset).astype(np.float32)
    x = y + draw(700, outputs) / 4
    found = evaluate(outputs_model(HuberRecord(), (outputs,)), x, y)
    error, y64 = x.astype(np.float64) - y, y.astype(np.float64)
    assert found.accuracy is None and found.classes == {}
    assert found.metrics["mean_squared_error"] == pytest.approx((error**2).mean(), rel=1e-12)
    assert found.metrics["mean_absolute_error"] == pytest.approx(np.abs(error).mean(), rel=1e-12)
    if outputs > 1024:
        assert "r2" not in found.metrics
        return
    deviations = ((y64 - y64.mean(axis=0)) ** 2).sum(axis=0)
    assert found.metrics["r2"] == pytest.approx((1 - (error**2).sum(axis=0) / deviations).mean(), rel=1e-10)


def test_a_target_that_never_changes_has_no_r2() -> None:
    y = np.full((700, 2), 0.1, np.float32)
    x = draw(700, 2)
    assert "r2" not in evaluate(outputs_model(MeanSquaredErrorRecord(), (2,)), x, y).metrics
    y[:, 1] = draw(700)
    one = evaluate(outputs_model(MeanSquaredErrorRecord(), (1,)), x[:, 1:].copy(), y[:, 1:].copy())
    assert evaluate(outputs_model(MeanSquaredErrorRecord(), (2,)), x, y).metrics["r2"] == one.metrics["r2"]


def test_r2_of_the_mean_is_0() -> None:
    moments = Moments(4, np.array([1.0]), np.array([8.0]), np.array([8.0]))
    assert r2(moments) == 0


def test_logits_of_numbers_have_their_loss_alone() -> None:
    y = np.random.default_rng(0).random((20, 3)).astype(np.float32)
    found = evaluate(outputs_model(BinaryCrossEntropyRecord(), (3,)), draw(20, 3), y)
    assert (found.accuracy, found.metrics, found.classes) == (None, {}, {})


# Any split


def cases() -> Sequence[Any]:
    random = np.random.default_rng(8)
    return [
        (SOFTMAX, (2,), random.integers(0, 2, 2500)),
        (SoftmaxCrossEntropyRecord(label_smoothing=0.1), (8,), random.integers(0, 8, 2500)),
        (SoftmaxCrossEntropyRecord(ignored_label=-1), (5, 6), random.integers(-1, 6, (2500, 5))),
        (MeanSquaredErrorRecord(), (3,), random.normal(size=(2500, 3)).astype(np.float32) * 1e3 + 1e5),
    ]


@pytest.mark.parametrize(("loss", "shape", "y"), cases())
def test_any_number_of_workers_gives_the_same_bits(loss: LossRecord, shape: tuple[int, ...], y: Any) -> None:
    model, x = outputs_model(loss, shape), draw(2500, *shape)
    found = [evaluate(model, x, y, workers, positions=len(shape) > 1) for workers in (1, 2, 3, 7, 10, 12)]
    assert all(one == found[0] for one in found)
    assert len(found[0].metrics) >= 3


def test_the_size_of_a_pass_over_outputs_changes_no_bits() -> None:
    record = SoftmaxCrossEntropyRecord(label_smoothing=0.1)
    z, y = draw(1, 300, 9)[:, :, :, None][..., 0], np.random.default_rng(1).integers(0, 9, (1, 300))
    found = []
    for step in (1, 7, 300):
        metrics, counts = ClassMetrics(record, (9,)), Counts(9)
        metrics.step = step
        found.append(metrics.measure(np.ascontiguousarray(z.transpose(0, 2, 1)), y, 300, counts))
    assert found[0] == found[1] == found[2]
