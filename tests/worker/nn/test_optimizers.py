"""Optimizers against their formulas written out in float64; any cut of the vector gives the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.contract.errors import InternalError
from tests.worker.nn.allocations import peak_bytes
from worker.nn.optimizers import Lamb, build_optimizer
from worker.nn.schedules import learning_rate
from worker.nn.shapes import BLOCK_FLOATS
from worker.specs import (
    AdagradRecord,
    AdamRecord,
    AdamWRecord,
    ConstantSchedule,
    LambRecord,
    MomentumRecord,
    NesterovRecord,
    OptimizerRecord,
    RmsPropRecord,
    SgdRecord,
)

CONSTANT = ConstantSchedule()
LAMB = LambRecord(0.1, 0.9, 0.99, 1e-6, 0.3, CONSTANT)
ADAMW = AdamWRecord(0.1, 0.9, 0.99, 1e-8, 0.3, CONSTANT)
RECORDS: list[OptimizerRecord] = [
    SgdRecord(0.1, CONSTANT),
    MomentumRecord(0.1, 0.9, CONSTANT),
    NesterovRecord(0.1, 0.9, CONSTANT),
    AdagradRecord(0.1, 1e-10, CONSTANT),
    RmsPropRecord(0.1, 0.9, 1e-8, CONSTANT),
    AdamRecord(0.1, 0.9, 0.99, 1e-8, CONSTANT),
    ADAMW,
]


def test_sgd_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    optimizer = build_optimizer(SgdRecord(0.1, CONSTANT), np.float64)
    w = rng.normal(size=40)
    expected = w.copy()
    for step in range(1, 6):
        g = rng.normal(size=40)
        optimizer.apply(w, g.copy(), (), step, 0.1 / step)
        expected = expected - 0.1 / step * g
    np.testing.assert_allclose(w, expected, rtol=1e-13, atol=1e-15)
    assert optimizer.state_names == ()


def test_momentum_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    optimizer = build_optimizer(MomentumRecord(0.1, 0.8, CONSTANT), np.float64)
    w, v = rng.normal(size=40), np.zeros(40)
    start, gradients = w.copy(), [rng.normal(size=40) for _ in range(5)]
    for step, g in enumerate(gradients, start=1):
        optimizer.apply(w, g.copy(), (v,), step, 0.1)
    # Unrolled: v_t = sum over s <= t of 0.8^(t-s) g_s.
    velocities = [sum(0.8 ** (t - s) * gradients[s] for s in range(t + 1)) for t in range(5)]
    np.testing.assert_allclose(v, velocities[-1], rtol=1e-12)
    np.testing.assert_allclose(w, start - 0.1 * sum(velocities), rtol=1e-12)
    assert optimizer.state_names == ("velocity",)


def twenty_steps(
    record: OptimizerRecord, dtype: type = np.float64, decays: bool = True
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """(the gradients, the weights before, the weights after) of twenty steps at the record's rate."""
    rng = np.random.default_rng(4)
    optimizer = build_optimizer(record, dtype)
    w: np.ndarray = rng.normal(size=50).astype(dtype)
    start = w.copy()
    gradients: list[np.ndarray] = [rng.normal(size=50).astype(dtype) for _ in range(20)]
    state: list[np.ndarray] = [np.zeros(50, dtype) for _ in optimizer.state_names]
    assert len(state) == len(record.state_names)
    for step, g in enumerate(gradients, start=1):
        optimizer.apply(w, g, state, step, record.learning_rate, decays)
    return gradients, start, w


def test_nesterov_is_its_formula() -> None:
    gradients, w, after = twenty_steps(NesterovRecord(0.1, 0.9, CONSTANT))
    # The paper's own form: the gradient is taken at theta + momentum * v, which is what w holds here.
    v = np.zeros(50)
    for g in gradients:
        theta = w - 0.9 * v
        v = 0.9 * v - 0.1 * g
        w = theta + v + 0.9 * v
    np.testing.assert_allclose(after, w, rtol=1e-10, atol=1e-12)


def test_adagrad_is_its_formula() -> None:
    gradients, w, after = twenty_steps(AdagradRecord(0.1, 1e-10, CONSTANT))
    for t, g in enumerate(gradients):
        w = w - 0.1 * g / (np.sqrt(sum(h**2 for h in gradients[: t + 1])) + 1e-10)
    np.testing.assert_allclose(after, w, rtol=1e-12)


def test_rmsprop_is_its_formula() -> None:
    gradients, w, after = twenty_steps(RmsPropRecord(0.1, 0.9, 1e-8, CONSTANT))
    for t, g in enumerate(gradients):
        s = sum(0.1 * 0.9 ** (t - i) * gradients[i] ** 2 for i in range(t + 1))
        w = w - 0.1 * g / (np.sqrt(s) + 1e-8)
    np.testing.assert_allclose(after, w, rtol=1e-11)


def adam(gradients: list[np.ndarray], w: np.ndarray, decay: float) -> np.ndarray:
    for t in range(len(gradients)):
        m = sum(0.1 * 0.9 ** (t - i) * gradients[i] for i in range(t + 1)) / (1 - 0.9 ** (t + 1))
        v = sum(0.01 * 0.99 ** (t - i) * gradients[i] ** 2 for i in range(t + 1)) / (1 - 0.99 ** (t + 1))
        w = w - 0.1 * decay * w - 0.1 * m / (np.sqrt(v) + 1e-8)
    return w


@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-10), (np.float32, 2e-4)])
def test_adam_is_its_formula(dtype: type, bound: float) -> None:
    gradients, w, after = twenty_steps(AdamRecord(0.1, 0.9, 0.99, 1e-8, CONSTANT), dtype)
    wide = [g.astype(np.float64) for g in gradients]
    np.testing.assert_allclose(after, adam(wide, w.astype(np.float64), 0), rtol=bound, atol=bound)


def test_adamw_decays_weights_apart_from_the_gradient_and_biases_not() -> None:
    gradients, w, after = twenty_steps(ADAMW)
    np.testing.assert_allclose(after, adam(gradients, w, 0.3), rtol=1e-10)
    gradients, w, after = twenty_steps(ADAMW, decays=False)
    np.testing.assert_allclose(after, adam(gradients, w, 0), rtol=1e-10)


@pytest.mark.parametrize("decay", [0.3, 0.0])
def test_lambs_direction_takes_the_gradients_place_and_the_parameters_wait_for_the_move(decay: float) -> None:
    rng = np.random.default_rng(4)
    optimizer = build_optimizer(LAMB, np.float64)
    assert isinstance(optimizer, Lamb)
    w, state = rng.normal(size=50), [np.zeros(50), np.zeros(50)]
    gradients: list[np.ndarray] = []
    for step in range(1, 6):
        gradients.append(rng.normal(size=50))
        u, before = gradients[-1].copy(), w.copy()
        optimizer.apply(w, u, state, step, 0.1, decays=decay > 0)
        assert (w == before).all()
        m = sum(0.1 * 0.9 ** (step - 1 - i) * g for i, g in enumerate(gradients)) / (1 - 0.9**step)
        v = sum(0.01 * 0.99 ** (step - 1 - i) * g**2 for i, g in enumerate(gradients)) / (1 - 0.99**step)
        direction = m / (np.sqrt(v) + 1e-6) + decay * w
        np.testing.assert_allclose(u, direction, rtol=1e-10)
        optimizer.move(w, u, 0.07)
        np.testing.assert_allclose(w, before - 0.07 * direction, rtol=1e-10)


@settings(max_examples=40, deadline=None)
@given(record=st.sampled_from(RECORDS), cuts=st.lists(st.integers(0, 2 * BLOCK_FLOATS), max_size=4))
def test_any_cut_gives_the_same_bits(record: OptimizerRecord, cuts: list[int]) -> None:
    size = 2 * BLOCK_FLOATS + 77
    rng = np.random.default_rng(1)
    w, g = rng.standard_normal(size, np.float32), rng.standard_normal(size, np.float32)
    whole, pieces = build_optimizer(record), build_optimizer(record)
    state = [np.abs(rng.standard_normal(size, np.float32)) for _ in whole.state_names]
    other_w, other_state = w.copy(), [vector.copy() for vector in state]
    whole.apply(w, g.copy(), state, 1, 0.1)
    for first, end in zip([0, *sorted(cuts)], [*sorted(cuts), size], strict=True):
        pieces.apply(other_w[first:end], g[first:end], [vector[first:end] for vector in other_state], 1, 0.1)
    assert w.tobytes() == other_w.tobytes()
    assert [vector.tobytes() for vector in state] == [vector.tobytes() for vector in other_state]


@pytest.mark.parametrize("record", [*RECORDS, LAMB])
def test_no_array_is_allocated_after_the_first_call(record: OptimizerRecord) -> None:
    size = 2 * BLOCK_FLOATS
    optimizer = build_optimizer(record)
    w, g = np.ones(size, np.float32), np.ones(size, np.float32)
    state = [np.zeros(size, np.float32) for _ in optimizer.state_names]
    optimizer.apply(w, g, state, 1, 0.1)
    assert peak_bytes(lambda: optimizer.apply(w, g, state, 2, 0.1)) < 4096


def test_a_missing_state_vector_is_our_fault() -> None:
    optimizer = build_optimizer(MomentumRecord(0.1, 0.9, CONSTANT))
    with pytest.raises(InternalError, match="Momentum got 0 state vectors; it needs 1"):
        optimizer.apply(np.zeros(3, np.float32), np.zeros(3, np.float32), (), 1, 0.1)


def test_the_constant_schedule_is_constant() -> None:
    assert {learning_rate(record, step, 10, 100) for record in RECORDS for step in (1, 11, 100)} == {0.1}
