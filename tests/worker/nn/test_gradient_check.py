"""numerical gradient == backward, for every layer and loss, through the methods that train."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.nn.networks import CROSS_ENTROPY, SQUARES, dense_net, draw_stack
from worker.nn.gradient_check import check_gradients
from worker.nn.layers import Relu
from worker.nn.model import Model
from worker.specs import LossRecord

WORST = 1e-6


# The same examples in every run: a drawn input on the very edge of a rectifier has no derivative to compare.
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    loss=st.sampled_from([CROSS_ENTROPY, SQUARES]),
    units=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    inputs=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    bias=st.booleans(),
    shards=st.integers(1, 4),
    rows=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_backward_is_the_derivative(
    loss: LossRecord, units: list[int], inputs: list[int], bias: bool, shards: int, rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(inputs)
    architecture = dense_net(units, inputs=shape, bias=bias, flatten=len(shape) > 1)
    # Two stacks, the first one row larger, and two subtrees.
    stacks = [draw_stack(rng, n, r, shape, units[-1], loss) for n, r in ((shards, rows + 1), (1, rows))]
    model = Model(architecture, loss)
    parameters = model.parameters.astype(np.float64)
    for entry in model.layout.entries:
        parameters[entry.offset : entry.offset + entry.size] += 0.3 * rng.standard_normal(entry.size)
    for check in check_gradients(
        architecture, loss, stacks, combine=((0, shards), (shards, shards + 1)), parameters=parameters
    ):
        assert check.worst_relative_error < WORST, check


def test_a_wrong_backward_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Relu, "backward", lambda self, dy: dy)
    rng = np.random.default_rng(1)
    architecture = dense_net([6, 3], inputs=(5,))
    checks = check_gradients(architecture, CROSS_ENTROPY, [draw_stack(rng, 2, 4, (5,), 3, CROSS_ENTROPY)])
    errors = {check.name: check.worst_relative_error for check in checks}
    assert errors["0.dense.weight"] > 1e-2
    assert errors["2.dense.weight"] < WORST


def test_samples_bound_the_elements() -> None:
    rng = np.random.default_rng(1)
    stack = draw_stack(rng, 1, 4, (30,), 3, CROSS_ENTROPY)
    checks = check_gradients(dense_net([3], inputs=(30,)), CROSS_ENTROPY, [stack], samples=7)
    assert {check.name: check.checked for check in checks} == {"0.dense.weight": 7, "0.dense.bias": 3}


def test_float32_gradients_agree_with_float64() -> None:
    rng = np.random.default_rng(2)
    architecture = dense_net([32, 10], inputs=(20,))
    x, y = draw_stack(rng, 2, 16, (20,), 10, CROSS_ENTROPY)
    single, double = Model(architecture, CROSS_ENTROPY, seed=3), Model(architecture, CROSS_ENTROPY, seed=3, dtype=np.float64)
    np.testing.assert_array_equal(single.parameters, double.parameters)
    single.loss_and_gradient([(x, y)])
    double.loss_and_gradient([(x.astype(np.float64), y)])
    for name, gradient in double.named_gradients().items():
        error = np.abs(single.named_gradients()[name] - gradient).max() / np.abs(gradient).max()
        assert error < 1e-5, name


def test_a_check_is_plain_data() -> None:
    stack = draw_stack(np.random.default_rng(0), 1, 2, (2,), 2, SQUARES)
    (weight, _) = check_gradients(dense_net([2], inputs=(2,)), SQUARES, [stack])
    assert dataclasses.asdict(weight)["name"] == "0.dense.weight"
    assert len(weight.worst_index) == 2
