"""Losses against their formulas, their gradients against differences, and both at the edges of float32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.contract.errors import UserError
from tests.worker.nn.allocations import peak_bytes
from worker.nn.layers import Layout
from worker.nn.losses import LOSSES, Loss, build_loss
from worker.specs import (
    BinaryCrossEntropyRecord,
    HuberRecord,
    LossRecord,
    MeanAbsoluteErrorRecord,
    MeanSquaredErrorRecord,
    SoftmaxCrossEntropyRecord,
)

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
CROSS_ENTROPY, BINARY, SQUARES = SoftmaxCrossEntropyRecord(), BinaryCrossEntropyRecord(), MeanSquaredErrorRecord()
WEIGHTS = (0.5, 2.0, 1.25, 3.0)

RECORDS = [
    CROSS_ENTROPY,
    SoftmaxCrossEntropyRecord(label_smoothing=0.2),
    SoftmaxCrossEntropyRecord(class_weights=WEIGHTS),
    SoftmaxCrossEntropyRecord(ignored_label=-100),
    SoftmaxCrossEntropyRecord(ignored_label=1),
    SoftmaxCrossEntropyRecord(0.1, WEIGHTS, 2),
    BINARY,
    SQUARES,
    MeanAbsoluteErrorRecord(),
    HuberRecord(0.7),
]
SHAPES = [(4,), (3, 4), (2, 3, 4)]


def draw(record: LossRecord, shape: tuple[int, ...], seed: int, shards: int = 2, rows: int = 3) -> tuple[Any, Any]:
    """Outputs (S, R, *shape) and targets, in float64 or whole numbers."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(shards, rows, *shape)) * 2
    if isinstance(record, SoftmaxCrossEntropyRecord):
        y = rng.integers(0, shape[-1], (shards, rows, *shape[:-1]))
        if record.ignored_label is not None:
            y = np.where(rng.random(y.shape) < 0.4, record.ignored_label, y)
        return z, y
    if isinstance(record, BinaryCrossEntropyRecord):
        return z, rng.integers(0, 2, (shards, rows)) if shape == (1,) else rng.random(z.shape)
    return z, rng.normal(size=z.shape)


def inside(loss: Loss, z: Any) -> Any:
    """z (S, R, *shape) as the loss wants it, a new array."""
    turned = z if loss.layout is Layout.ROWS_FIRST else np.moveaxis(z, 1, -1)
    return np.array(turned, loss.dtype, order="C")


def outside(loss: Loss, z: Any) -> Any:
    return np.array(z if loss.layout is Layout.ROWS_FIRST else np.moveaxis(z, -1, 1))


def run(record: LossRecord, z: Any, y: Any, dtype: Any = F64) -> tuple[Loss, Any]:
    """The loss after both passes, and dz (S, R, *shape)."""
    loss = build_loss(record, z.shape[0], z.shape[1], z.shape[2:], dtype)
    assert y.shape[2:] == loss.target_shape(z.shape[2:])
    given = inside(loss, z)
    loss.forward(given, np.ascontiguousarray(y, loss.target_dtype))
    dz = loss.backward()
    assert dz.shape == given.shape
    return loss, outside(loss, dz)


def formula(record: LossRecord, z: Any, y: Any) -> tuple[float, float]:
    """(loss, denominator) of one row, in plain Python."""
    if isinstance(record, SoftmaxCrossEntropyRecord):
        losses, weights = [0.0], [0.0]
        for row, label in zip(z.reshape(-1, z.shape[-1]).tolist(), np.reshape(y, -1).tolist(), strict=True):
            if label == record.ignored_label:
                continue
            log_sum = math.log(sum(math.exp(v) for v in row))
            smoothing = record.label_smoothing / len(row)
            target = [smoothing + (1 - record.label_smoothing) * (k == label) for k in range(len(row))]
            weights.append(record.class_weights[label] if record.class_weights else 1.0)
            losses.append(weights[-1] * sum(t * (log_sum - v) for t, v in zip(target, row, strict=True)))
        return sum(losses), sum(weights)
    total = 0.0
    for v, t in zip(z.reshape(-1).tolist(), np.reshape(y, -1).tolist(), strict=True):
        d = abs(v - t)
        if isinstance(record, BinaryCrossEntropyRecord):
            total -= t * math.log(1 / (1 + math.exp(-v))) + (1 - t) * math.log(1 - 1 / (1 + math.exp(-v)))
        elif isinstance(record, HuberRecord):
            total += d * d / 2 if d <= record.delta else record.delta * (d - record.delta / 2)
        else:
            total += d * d if isinstance(record, MeanSquaredErrorRecord) else d
    return total / z.size, 1.0


def test_every_record_has_its_loss() -> None:
    assert set(LOSSES) == {type(record) for record in RECORDS}


@pytest.mark.parametrize("shape", [*SHAPES, (1,)])
@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_a_loss_is_its_formula(record: LossRecord, shape: tuple[int, ...]) -> None:
    if shape == (1,) and isinstance(record, SoftmaxCrossEntropyRecord) and record.class_weights:
        return
    z, y = draw(record, shape, 1)
    loss, _ = run(record, z, y)
    expected = np.array([[formula(record, z[s, r], y[s, r]) for r in range(3)] for s in range(2)])
    np.testing.assert_allclose(loss.row_losses, expected[..., 0], rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(loss.loss_sums, expected[..., 0].sum(axis=1), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(loss.row_denominators, expected[..., 1])
    np.testing.assert_allclose(loss.denominators, expected[..., 1].sum(axis=1))


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("shape", [*SHAPES, (1,)])
@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_the_gradient_is_that_of_the_sum(record: LossRecord, shape: tuple[int, ...], seed: int) -> None:
    if shape == (1,) and isinstance(record, SoftmaxCrossEntropyRecord) and record.class_weights:
        return
    z, y = draw(record, shape, seed)
    if isinstance(record, MeanAbsoluteErrorRecord):
        # Away from the kink.
        y = np.where(np.abs(z - y) < 1e-3, z + 1e-3, y)
    loss, dz = run(record, z, y)
    target = np.ascontiguousarray(y, loss.target_dtype)
    flat = z.reshape(-1)
    for index in range(0, flat.size, max(1, flat.size // 24)):
        kept, sums = flat[index], []
        for value in (kept + 1e-6, kept - 1e-6):
            flat[index] = value
            loss.forward(inside(loss, z), target)
            sums.append(math.fsum(loss.row_losses.reshape(-1)))
        flat[index] = kept
        assert (sums[0] - sums[1]) / 2e-6 == pytest.approx(dz.reshape(-1)[index], rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_a_shard_of_a_stack_has_the_bits_that_it_has_alone(record: LossRecord, shape: tuple[int, ...]) -> None:
    z, y = draw(record, shape, 2, shards=3, rows=5)
    loss, dz = run(record, z, y, F32)
    for shard in range(3):
        alone, dz_alone = run(record, z[shard : shard + 1], y[shard : shard + 1], F32)
        assert alone.row_losses[0].tobytes() == loss.row_losses[shard].tobytes()
        assert alone.loss_sums[0] == loss.loss_sums[shard]
        assert alone.denominators[0] == loss.denominators[shard]
        assert dz_alone[0].tobytes() == dz[shard].tobytes()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), outputs=st.integers(1, 40), rows=st.integers(1, 40))
def test_plain_losses_have_the_bits_of_their_formulas(seed: int, outputs: int, rows: int) -> None:
    z, y = draw(CROSS_ENTROPY, (outputs,), seed, 1, rows)
    a = np.ascontiguousarray(z[0].T, np.float32)
    shifted = a - np.maximum.reduce(a, axis=0)
    e = np.exp(shifted)
    s = np.add.reduce(e, axis=0)
    p = e / s
    p[y[0], np.arange(rows)] -= np.float32(1)
    row_losses = (np.log(s) - shifted[y[0], np.arange(rows)]).astype(np.float64)
    for record in (CROSS_ENTROPY, SoftmaxCrossEntropyRecord(ignored_label=-1)):
        loss, dz = run(record, z, y, F32)
        assert loss.row_losses[0].tobytes() == row_losses.tobytes()
        assert loss.loss_sums[0] == np.add.reduce(row_losses)
        np.testing.assert_array_equal(dz[0], p.T)
    z, y = draw(SQUARES, (outputs,), seed, 1, rows)
    d = np.ascontiguousarray(z[0].T, np.float32) - np.ascontiguousarray(y[0].T, np.float32)
    loss, dz = run(SQUARES, z, y, F32)
    row_losses = (np.add.reduce(d * d, axis=0) / np.float32(outputs)).astype(np.float64)
    assert loss.row_losses[0].tobytes() == row_losses.tobytes()
    assert loss.loss_sums[0] == np.add.reduce(row_losses)
    np.testing.assert_array_equal(dz[0], (d * np.float32(2 / outputs)).T)


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_nothing_is_allocated(record: LossRecord) -> None:
    z, y = draw(record, (50, 4), 3, shards=2, rows=300)
    loss = build_loss(record, 2, 300, (50, 4), F32)
    given, target = inside(loss, z), np.ascontiguousarray(y, loss.target_dtype)

    def both_passes() -> None:
        loss.forward(given, target)
        loss.backward()

    both_passes()
    assert peak_bytes(both_passes) < 4096


@pytest.mark.parametrize("scale", [1e4, -1e4, 3e38])
def test_softmax_cross_entropy_is_stable_at_large_outputs(scale: float) -> None:
    z = np.zeros((1, 2, 3))
    z[0, :, 0] = scale
    loss, dz = run(CROSS_ENTROPY, z, np.array([[0, 1]]), F32)
    gap = abs(float(np.float32(scale)))
    expected = [0.0, gap] if scale > 0 else [gap + math.log(2), math.log(2)]
    np.testing.assert_allclose(loss.row_losses[0], expected, rtol=1e-6)
    assert np.isfinite(dz).all()


@pytest.mark.parametrize("record", RECORDS, ids=str)
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_every_loss_is_finite_at_large_outputs(record: LossRecord, scale: float) -> None:
    z, y = draw(record, (3, 4), 4)
    loss, dz = run(record, np.sign(z) * scale, y, F32)
    wide, dz_wide = run(record, np.sign(z) * scale, y, F64)
    np.testing.assert_allclose(loss.row_losses, wide.row_losses, rtol=1e-5)
    np.testing.assert_allclose(dz, dz_wide, rtol=1e-5, atol=1e-6)
    assert np.isfinite(loss.row_losses).all()
    assert np.isfinite(dz).all()


def test_binary_cross_entropy_at_large_outputs() -> None:
    z = np.array([[[1e4], [1e4], [-1e4], [-1e4], [0.0], [-0.0], [20.0], [-20.0]]])
    loss, dz = run(BINARY, z, np.array([[1, 0, 1, 0, 1, 0, 1, 0]]), F32)
    np.testing.assert_allclose(loss.row_losses[0, :6], [0, 1e4, 1e4, 0, math.log(2), math.log(2)], rtol=1e-6)
    # Next to the label the gradient keeps its digits.
    tiny = 1 / (1 + math.exp(20))
    np.testing.assert_allclose(dz[0, :, 0], [0, 1, -1, 0, -0.5, 0.5, -tiny, tiny], rtol=1e-6)


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_nan_stays_nan(record: LossRecord) -> None:
    z, y = draw(record, (4,), 5)
    z[1, 2, 3] = np.nan
    loss, dz = run(record, z, y, F32)
    assert np.isnan(loss.loss_sums).tolist() == [False, True]
    assert np.isnan(dz[1, 2, 3])
    assert not np.isnan(dz[0]).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ignored", [-1, 0, 3, 7])
def test_where_all_is_ignored_nothing_counts(shape: tuple[int, ...], ignored: int) -> None:
    record = SoftmaxCrossEntropyRecord(0.1, WEIGHTS, ignored)
    z, y = draw(record, shape, 6)
    y[0, 0], y[1] = 1, ignored
    loss, dz = run(record, z, y, F32)
    assert loss.loss_sums[1] == loss.denominators[1] == 0
    assert not dz[1].any()
    assert dz[0].any()


@pytest.mark.parametrize("shape", [(3,), (4, 3)])
@pytest.mark.parametrize("ignored", [None, -5])
@pytest.mark.parametrize("label", [-1, 3, 2**62, -(2**63)])
def test_a_label_outside_the_classes_is_refused(label: int, ignored: int | None, shape: tuple[int, ...]) -> None:
    record = SoftmaxCrossEntropyRecord(ignored_label=ignored)
    y = np.zeros((1, 2, *shape[:-1]), np.int64)
    y[0, 1] = label
    with pytest.raises(UserError) as raised:
        run(record, np.zeros((1, 2, *shape)), y, F32)
    assert raised.value.reason == "LABEL_OUT_OF_RANGE"
    also = "" if ignored is None else ", or -5, which is ignored"
    expected = f"loss.softmax_cross_entropy: got the label {label}; labels must be whole numbers from 0 to 2{also}"
    assert str(raised.value) == expected


def test_class_weights_are_as_many_as_the_outputs() -> None:
    with pytest.raises(UserError, match=r"class_weights: got 4 weights; the model gives 3 outputs") as raised:
        build_loss(SoftmaxCrossEntropyRecord(class_weights=WEIGHTS), 1, 2, (3,), F32)
    assert raised.value.reason == "WRONG_NUMBER_OF_WEIGHTS"


@pytest.mark.parametrize("label", [-1, 2, 2**62])
def test_a_binary_label_is_zero_or_one(label: int) -> None:
    with pytest.raises(UserError, match=rf"binary_cross_entropy: got the label {label}; labels must be 0 or 1") as raised:
        run(BINARY, np.zeros((1, 2, 1)), np.array([[0, label]]), F32)
    assert raised.value.reason == "LABEL_OUT_OF_RANGE"


@pytest.mark.parametrize("target", [-0.5, 1.5, np.inf])
def test_a_binary_target_is_from_zero_to_one(target: float) -> None:
    with pytest.raises(UserError, match=r"targets must be numbers from 0 to 1") as raised:
        run(BINARY, np.zeros((1, 1, 2)), np.array([[[0.5, target]]]), F32)
    assert raised.value.reason == "TARGET_OUT_OF_RANGE"


def test_targets_and_layouts() -> None:
    for record, shape, target, dtype, layout in [
        (CROSS_ENTROPY, (5,), (), np.int64, Layout.ROWS_LAST),
        (CROSS_ENTROPY, (7, 5), (7,), np.int64, Layout.ROWS_FIRST),
        (BINARY, (1,), (), np.int64, Layout.ROWS_LAST),
        (BINARY, (5,), (5,), np.float32, Layout.ROWS_LAST),
        (SQUARES, (5,), (5,), np.float32, Layout.ROWS_LAST),
        (HuberRecord(), (7, 5), (7, 5), np.float32, Layout.ROWS_FIRST),
    ]:
        loss = build_loss(record, 2, 3, shape, F32, training=False)
        assert (type(loss).target_shape(shape), loss.target_dtype) == (target, np.dtype(dtype))
        assert loss.layout is layout


def test_a_check_refuses_what_forward_refuses() -> None:
    softmax, binary = build_loss(CROSS_ENTROPY, 1, 2, (3,), F32), build_loss(BINARY, 1, 2, (1,), F32)
    for loss, wrong in ((softmax, [[0, 3]]), (softmax, [[-1, 0]]), (binary, [[0, 2]])):
        loss.check(np.array([[0, 1]]))
        with pytest.raises(UserError, match="label"):
            loss.check(np.array(wrong))
