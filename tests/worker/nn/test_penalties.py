"""L1 and L2 penalties: what enters the gradient is the derivative of the sum."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.nn.penalties import add_penalties

RATES = [(0.0, 0.0), (0.3, 0.0), (0.0, 0.7), (0.3, 0.7)]


def penalty(w: NDArray[np.float64], l1: float, l2: float) -> float:
    return float(l1 * np.abs(w).sum() + l2 / 2 * (w * w).sum())


@pytest.mark.parametrize(("l1", "l2"), RATES)
def test_the_gradient_is_the_derivative_of_the_penalty(l1: float, l2: float) -> None:
    w = np.random.default_rng(0).standard_normal(20)
    g = np.zeros(20)
    add_penalties(w, g, l1, l2, np.full(20, np.nan))
    for index in range(20):
        above, below = w.copy(), w.copy()
        above[index] += 1e-6
        below[index] -= 1e-6
        assert (penalty(above, l1, l2) - penalty(below, l1, l2)) / 2e-6 == pytest.approx(g[index], abs=1e-7)


@pytest.mark.parametrize(("l1", "l2"), RATES)
def test_blocks_give_the_bits_of_the_formula(l1: float, l2: float) -> None:
    rng = np.random.default_rng(1)
    w, g = (rng.standard_normal(1000).astype(np.float32) for _ in range(2))
    want = g + w * np.float32(l2) if l2 else g.copy()
    want = want + np.sign(w) * np.float32(l1) if l1 else want
    scratch = np.full(1000, np.nan, np.float32)
    for first, end in [(0, 3), (3, 700), (700, 1000)]:
        add_penalties(w[first:end], g[first:end], l1, l2, scratch[: end - first])
    assert g.tobytes() == want.tobytes()


def test_a_weight_of_zero_is_left_alone() -> None:
    w, g = np.array([0.0, -0.0, 2.0, -2.0], np.float32), np.zeros(4, np.float32)
    add_penalties(w, g, 0.5, 0.0, np.empty(4, np.float32))
    assert g.tolist() == [0, 0, 0.5, -0.5]
