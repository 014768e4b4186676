"""Losses against their formulas, and at the edges of float32."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lockstep.contract.errors import UserError
from worker.nn.losses import MeanSquaredError, SoftmaxCrossEntropy

F32 = np.dtype(np.float32)


def test_softmax_cross_entropy_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 5, 3)) * 4
    y = rng.integers(0, 5, (2, 3))
    loss = SoftmaxCrossEntropy(2, 5, 3, np.dtype(np.float64))
    loss.forward(z.copy(), y)
    softmax = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    for shard in range(2):
        expected = [-math.log(softmax[shard, y[shard, r], r]) for r in range(3)]
        np.testing.assert_allclose(loss.row_losses[shard], expected, rtol=1e-12)
        assert loss.loss_sums[shard] == pytest.approx(sum(expected), rel=1e-12)
    onehot = np.arange(5)[None, :, None] == y[:, None, :]
    np.testing.assert_allclose(loss.backward(), softmax - onehot, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", [1e4, -1e4, 3e38])
def test_softmax_cross_entropy_is_stable_at_large_outputs(scale: float) -> None:
    z = np.zeros((1, 3, 2), np.float32)
    z[0, 0] = scale
    loss = SoftmaxCrossEntropy(1, 3, 2, F32)
    loss.forward(z, np.array([[0, 1]]))
    gap = abs(float(np.float32(scale)))
    expected = [0.0, gap] if scale > 0 else [gap + math.log(2), math.log(2)]
    np.testing.assert_allclose(loss.row_losses[0], expected, rtol=1e-6)
    assert np.isfinite(loss.backward()).all()


@pytest.mark.parametrize("label", [-1, 3, 2**62, -(2**63)])
def test_a_label_outside_the_classes_is_refused(label: int) -> None:
    loss = SoftmaxCrossEntropy(1, 3, 2, F32)
    with pytest.raises(UserError) as raised:
        loss.forward(np.zeros((1, 3, 2), np.float32), np.array([[0, label]]))
    assert raised.value.reason == "LABEL_OUT_OF_RANGE"
    assert f"got the label {label}; labels must be whole numbers from 0 to 2" in str(raised.value)


def test_mean_squared_error_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 3, 5))
    loss = MeanSquaredError(2, 5, 3, np.dtype(np.float64))
    loss.forward(z.copy(), y)
    difference = z - y.transpose(0, 2, 1)
    np.testing.assert_allclose(loss.row_losses, (difference**2).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(loss.backward(), 2 * difference / 5, rtol=1e-12)


def test_correct_counts_the_first_largest_output() -> None:
    z = np.array([[[1.0, 5.0, 2.0], [1.0, 0.0, 3.0]]], np.float32)
    loss = SoftmaxCrossEntropy(1, 2, 3, F32)
    assert loss.correct(z, np.array([[0, 0, 0]]), 3) == 2
    assert loss.correct(z, np.array([[1, 0, 1]]), 3) == 2
    assert loss.correct(z, np.array([[1, 0, 1]]), 2) == 1
