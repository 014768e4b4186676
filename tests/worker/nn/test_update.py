"""The update: penalties on weights alone, whatever the cuts into blocks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tests.worker.nn.networks import dense_net
from worker.nn.optimizers import build_optimizer
from worker.nn.shapes import BLOCK_FLOATS, parameter_layout
from worker.nn.update import Update
from worker.specs import ConstantSchedule, PenaltyRecord, SgdRecord

LAYOUT = parameter_layout(dense_net([300, 300, 4], inputs=(20,)))
SGD = SgdRecord(0.5, ConstantSchedule())


def drawn(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(LAYOUT.size).astype(np.float32)


@pytest.mark.parametrize(
    "penalty", [PenaltyRecord(0, 0), PenaltyRecord(0.1, 0), PenaltyRecord(0, 0.2), PenaltyRecord(0.1, 0.2)]
)
def test_penalties_are_the_formula_and_leave_biases_alone(penalty: PenaltyRecord) -> None:
    w, g = drawn(1), drawn(2)
    w[::7] = 0
    want = w.astype(np.float64)
    size = LAYOUT.decayed
    total = g.astype(np.float64)
    total[:size] += penalty.l1 * np.sign(want[:size]) + penalty.l2 * want[:size]
    want -= 0.5 * total
    update = Update(SGD, penalty, LAYOUT)
    borders = sorted({0, LAYOUT.size, *update.cuts, *range(0, LAYOUT.size, BLOCK_FLOATS)})
    for first, end in pairwise(borders):
        update.apply(first, w[first:end], g[first:end].copy(), [], 1, 0.5)
    np.testing.assert_allclose(w, want, rtol=2e-6, atol=1e-6)


def test_without_penalties_nothing_is_cut_and_the_optimizer_alone_acts() -> None:
    w, other = drawn(1), drawn(1)
    update = Update(SGD, PenaltyRecord(0, 0), LAYOUT)
    assert update.cuts == ()
    update.apply(0, w[:1000], drawn(2)[:1000], [], 1, 0.5)
    build_optimizer(SGD).apply(other[:1000], drawn(2)[:1000], [], 1, 0.5)
    assert w.tobytes() == other.tobytes()
