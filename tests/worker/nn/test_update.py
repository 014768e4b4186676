"""The update: penalties on weights alone, bounds on the gradient, LAMB's ratios, whatever the cuts into blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests.worker.nn.allocations import peak_bytes
from tests.worker.nn.networks import dense_net
from worker.nn.optimizers import build_optimizer
from worker.nn.shapes import BLOCK_FLOATS, ParameterLayout, Role, parameter_layout
from worker.nn.update import Update
from worker.specs import AdamRecord, ClippingRecord, ConstantSchedule, LambRecord, MomentumRecord, PenaltyRecord, SgdRecord

LAYOUT = parameter_layout(dense_net([300, 300, 4], inputs=(20,)))
SGD = SgdRecord(0.5, ConstantSchedule())
LAMB = LambRecord(0.02, 0.9, 0.99, 1e-6, 0.1, ConstantSchedule())
NO_PENALTY, PENALTY = PenaltyRecord(0, 0), PenaltyRecord(0.1, 0.2)


def drawn(seed: int) -> np.ndarray:
    """A vector with zeros in its gaps."""
    vector = np.zeros(LAYOUT.size, np.float32)
    rng = np.random.default_rng(seed)
    for entry in LAYOUT.entries:
        vector[entry.offset : entry.offset + entry.size] = rng.standard_normal(entry.size)
    return vector


def take_step(
    update: Update, w: np.ndarray, g: np.ndarray, state: Sequence[np.ndarray], step: int, rate: float, cuts: Sequence[int] = ()
) -> None:
    """One step on the whole vector, in passes over blocks as the workers take it, with more cuts at will; overwrites the
    gradient."""
    ends = sorted({0, len(w), *update.cuts, *cuts})
    borders = [at for first, end in pairwise(ends) for at in range(first, end, BLOCK_FLOATS)]
    for number in range(1 if update.norms is None else 1 + len(update.norms.rows)):
        if number:
            update.begin(number)
        for first, end in pairwise([*borders, len(w)]):
            vectors = [vector[first:end] for vector in state]
            update.apply(first, w[first:end], g[first:end], vectors, step, rate, number)


def penalized(w: np.ndarray, g: np.ndarray, penalty: PenaltyRecord) -> np.ndarray:
    """The gradient with the penalties of the weights, in float64."""
    total, size = g.astype(np.float64), LAYOUT.decayed
    total[:size] += penalty.l1 * np.sign(w[:size]) + penalty.l2 * w[:size]
    return total


@pytest.mark.parametrize("penalty", [NO_PENALTY, PenaltyRecord(0.1, 0), PenaltyRecord(0, 0.2), PENALTY])
def test_penalties_are_the_formula_and_leave_biases_alone(penalty: PenaltyRecord) -> None:
    w, g = drawn(1), drawn(2)
    w[::7] = 0
    want = w - 0.5 * penalized(w.astype(np.float64), g, penalty)
    take_step(Update(SGD, penalty, LAYOUT), w, g, [], 1, 0.5)
    np.testing.assert_allclose(w, want, rtol=2e-6, atol=1e-6)


def test_without_penalties_nothing_is_cut_and_the_optimizer_alone_acts() -> None:
    w, other = drawn(1), drawn(1)
    update = Update(SGD, NO_PENALTY, LAYOUT)
    assert update.cuts == () and update.norms is None
    update.apply(0, w[:1000], drawn(2)[:1000], [], 1, 0.5)
    build_optimizer(SGD).apply(other[:1000], drawn(2)[:1000], [], 1, 0.5)
    assert w.tobytes() == other.tobytes()


def test_each_element_is_clipped_after_the_penalties() -> None:
    w, g = drawn(1), drawn(2)
    want = w - 0.5 * np.clip(penalized(w.astype(np.float64), g, PENALTY), -0.3, 0.3)
    take_step(Update(SGD, PENALTY, LAYOUT, ClippingRecord(value=0.3)), w, g, [], 1, 0.5)
    np.testing.assert_allclose(w, want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("bound", [1.5, 1e6])
def test_the_norm_of_the_whole_gradient_is_bounded_after_the_penalties(bound: float) -> None:
    w, g, v = drawn(1), drawn(2), drawn(3)
    total = penalized(w.astype(np.float64), g, PENALTY)
    total *= min(1, bound / np.sqrt(np.sum(total**2)))
    want_v = 0.9 * v.astype(np.float64) + total
    want = w - 0.5 * want_v
    update = Update(MomentumRecord(0.5, 0.9, ConstantSchedule()), PENALTY, LAYOUT, ClippingRecord(global_norm=bound))
    take_step(update, w, g, [v], 1, 0.5)
    np.testing.assert_allclose(v, want_v, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(w, want, rtol=1e-5, atol=1e-6)


def test_a_bound_that_is_not_reached_changes_no_bit() -> None:
    bounded, free = drawn(1), drawn(1)
    adam = AdamRecord(0.01, 0.9, 0.99, 1e-8, ConstantSchedule())
    for clipping in (ClippingRecord(value=100), ClippingRecord(global_norm=1e5)):
        for w, bounds in ((bounded, clipping), (free, None)):
            take_step(Update(adam, PENALTY, LAYOUT, bounds), w, drawn(2), [drawn(3), np.abs(drawn(4))], 3, 0.01)
        assert bounded.tobytes() == free.tobytes()


def lamb_by_the_paper(w: np.ndarray, gradients: Sequence[np.ndarray], bound: float, rate: float) -> np.ndarray:
    """The weights after as many steps, in float64: clipped by the global norm, then LAMB, tensor by tensor."""
    w = w.astype(np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, gradient in enumerate(gradients, start=1):
        g = penalized(w, gradient, PENALTY)
        norm = np.sqrt(np.sum(g**2))
        g *= min(1, bound / norm)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        u = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.99**step)) + 1e-6)
        for entry in LAYOUT.entries:
            part = slice(entry.offset, entry.offset + entry.size)
            trust = 1.0
            if entry.offset < LAYOUT.decayed:
                u[part] += 0.1 * w[part]
                if np.any(w[part]) and np.any(u[part]):
                    trust = float(np.linalg.norm(w[part]) / np.linalg.norm(u[part]))
            w[part] -= rate * trust * u[part]
    return w


@pytest.mark.parametrize("bound", [1.0, 1e6])
@pytest.mark.parametrize("empty", [False, True])
def test_lamb_is_the_paper_with_biases_left_out(bound: float, empty: bool) -> None:
    start = drawn(1)
    if empty:  # no norm, no ratio
        first = LAYOUT.entries[0]
        start[first.offset : first.offset + first.size] = 0
    gradients = [drawn(seed) for seed in range(2, 7)]
    w, state = start.copy(), [np.zeros_like(start), np.zeros_like(start)]
    update = Update(LAMB, PENALTY, LAYOUT, ClippingRecord(global_norm=bound))
    assert update.state_names == ("mean", "squares")
    for step, g in enumerate(gradients, start=1):
        take_step(update, w, g.copy(), state, step, 0.02)
    np.testing.assert_allclose(w, lamb_by_the_paper(start, gradients, bound, 0.02), rtol=2e-4, atol=2e-5)


def test_a_gradient_of_zeros_is_neither_clipped_nor_divided_by() -> None:
    w, g, state = drawn(1), np.zeros(LAYOUT.size, np.float32), [np.zeros(LAYOUT.size, np.float32) for _ in range(2)]
    before = w.copy()
    no_decay = LambRecord(0.02, 0.9, 0.99, 1e-6, 0.0, ConstantSchedule())
    take_step(Update(no_decay, NO_PENALTY, LAYOUT, ClippingRecord(global_norm=1)), w, g, state, 1, 0.5)
    assert w.tobytes() == before.tobytes()


@pytest.mark.parametrize("clipping", [ClippingRecord(value=0.5), ClippingRecord(global_norm=1.0)])
def test_cuts_at_borders_give_the_same_bits(clipping: ClippingRecord) -> None:
    tensors = [*range(0, 90000, 4096 * 3)]  # of the second weight, the largest tensor
    second = next(entry for entry in LAYOUT.entries if entry.size == 90000)
    found = set()
    for cuts in ([], [second.offset + at for at in tensors], [entry.offset for entry in LAYOUT.entries]):
        w, state = drawn(1), [drawn(3), np.abs(drawn(4))]
        take_step(Update(LAMB, PENALTY, LAYOUT, clipping), w, drawn(2), state, 2, 0.1, cuts)
        found.add(w.tobytes() + state[0].tobytes() + state[1].tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("clipping", [None, ClippingRecord(value=0.1), ClippingRecord(global_norm=0.1)])
@pytest.mark.parametrize("record", [SGD, LAMB])
def test_state_becomes_a_running_mean_once_a_step_and_is_never_clipped(
    record: SgdRecord | LambRecord, clipping: ClippingRecord | None
) -> None:
    *learned, last = LAYOUT.entries
    last = replace(last, tensor=replace(last.tensor, role=Role.STATE, keep=0.75))
    layout = ParameterLayout(LAYOUT.size, LAYOUT.decayed, last.offset, (*learned, last))
    w, g, vectors = drawn(1), drawn(2), [drawn(3), np.abs(drawn(4))][: len(record.state_names)]
    want = 0.75 * w[last.offset :].astype(np.float64) + 0.25 * g[last.offset :]
    before, kept = w.copy(), [vector[last.offset :].copy() for vector in vectors]
    take_step(Update(record, PENALTY, layout, clipping), w, g, vectors, 1, 0.1)
    np.testing.assert_allclose(w[last.offset :], want, rtol=1e-6, atol=1e-7)
    assert (w[: learned[0].size] != before[: learned[0].size]).any()
    assert all((vector[last.offset :] == old).all() for vector, old in zip(vectors, kept, strict=True))


def test_no_array_is_allocated_after_the_first_step() -> None:
    w, g, state = drawn(1), drawn(2), [np.zeros(LAYOUT.size, np.float32) for _ in range(2)]
    update = Update(LAMB, PENALTY, LAYOUT, ClippingRecord(global_norm=1.0))
    take_step(update, w, g, state, 1, 0.1)
    assert peak_bytes(lambda: take_step(update, w, g, state, 2, 0.1)) < 8192
