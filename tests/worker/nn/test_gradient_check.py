"""numerical gradient == backward, for every layer and loss, through the methods that train."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.nn.networks import CROSS_ENTROPY, SQUARES, dense_net, draw_stack
from worker.nn.gradient_check import FLOAT32_TOLERANCE, STEPS, GradientCheck, check_gradients
from worker.nn.gradient_check import TOLERANCE as WORST
from worker.nn.layers import Relu
from worker.nn.layers.dense import Dense
from worker.nn.model import Model, Stack
from worker.nn.parameters import Array
from worker.specs import (
    Architecture,
    BatchNormRecord,
    DenseRecord,
    InitializerRecord,
    LossRecord,
    ReluRecord,
    SoftmaxCrossEntropyRecord,
)


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


def planted(monkeypatch: pytest.MonkeyPatch, layer: str, output: int, source: int, factor: float) -> None:
    """Makes one element of a dense layer's weight gradient wrong by a factor."""
    backward = Dense.backward

    def wrong(self: Dense, dy: Array) -> Array:
        dx = backward(self, dy)
        if self.setting.shapes.name == layer:
            assert self.dW_SOI is not None
            self.dW_SOI[:, output, source] *= factor
        return dx

    monkeypatch.setattr(Dense, "backward", wrong)


def test_one_wrong_element_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, "2.dense", 1, 4, 1 + 1e-5)
    checks = check_gradients(
        dense_net([6, 3], inputs=(5,)), SQUARES, [draw_stack(np.random.default_rng(1), 2, 4, (5,), 3, SQUARES)]
    )
    wrong = [check for check in checks if not check.worst_relative_error < WORST]
    assert [(check.name, check.worst_index) for check in wrong] == [("2.dense.weight", (4, 1))]
    assert wrong[0].worst_relative_error == pytest.approx(1e-5, rel=0.01)
    assert wrong[0].backward == pytest.approx(wrong[0].numerical * (1 + 1e-5), rel=1e-7)


def rectifier_at(distance: float) -> tuple[Architecture, Stack, Array]:
    """One unit whose rectifier opens when its bias has grown by `distance`, and one that is always open."""
    architecture = dense_net([2, 1], inputs=(1,))
    x, y = np.zeros((1, 1, 1)), np.full((1, 1, 1), -3.0)
    model = Model(architecture, SQUARES, dtype=np.float64)
    named = model.named_parameters()
    named["0.dense.bias"][...] = (-distance, 1.0)
    named["2.dense.weight"][...] = 1.0
    return architecture, (x, y), model.parameters


@pytest.mark.parametrize(
    "part", [0.0, 1e-9, 0.1, 0.25, 2 / 7, 1 / 3, 3 / 7, 0.499, 0.5, 0.7, 0.99, 1.0, 1.5, -1e-9, -0.3, -0.8, -2.0]
)
def test_a_kink_is_never_an_error(part: float) -> None:
    """However far from the rectifier's edge, in steps: beyond the shortest it is checked, within it it may be skipped."""
    architecture, stack, parameters = rectifier_at(part * STEPS[-1])
    checks = {check.name: check for check in check_gradients(architecture, SQUARES, [stack], parameters=parameters)}
    assert all(check.worst_relative_error < WORST for check in checks.values())
    bias = checks["0.dense.bias"]
    assert bias.checked + bias.skipped == 2
    if not -1 < part < 1:
        assert bias.skipped == 0
    if part in (0.0, 0.1, 0.25, -0.3):
        assert bias.skipped == 1


def test_a_kink_within_the_first_step_alone_is_checked_with_the_second() -> None:
    architecture, stack, parameters = rectifier_at(0.1 * STEPS[0])
    checks = {check.name: check for check in check_gradients(architecture, SQUARES, [stack], parameters=parameters)}
    bias = checks["0.dense.bias"]
    assert (bias.checked, bias.skipped) == (2, 0)
    assert bias.worst_relative_error < WORST


def test_an_error_is_no_kink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of every size are found where the loss is smooth; none is taken for a kink."""
    stack = draw_stack(np.random.default_rng(1), 2, 4, (5,), 3, SQUARES)
    architecture = dense_net([3], inputs=(5,))
    for factor in (1 + 3e-6, 1.001, 1.5, 2.0, -1.0, 0.0, 1e6):
        with monkeypatch.context() as patched:
            planted(patched, "0.dense", 2, 3, factor)
            weight = check_gradients(architecture, SQUARES, [stack])[0]
        assert (weight.skipped, weight.worst_index) == (0, (3, 2)), factor
        assert weight.worst_relative_error > WORST


def test_elements_are_drawn_from_the_seed_one_of_each_part() -> None:
    model = Model(dense_net([30], inputs=(40,)), SQUARES, seed=4)
    stack = draw_stack(np.random.default_rng(1), 1, 4, (40,), 30, SQUARES)

    def drawn(seed: int) -> list[int]:
        model.seed = seed
        check = GradientCheck(model, [stack], samples=12)
        return check._drawn(0, check.tensors[0])

    assert drawn(4) == drawn(4) != drawn(5)
    assert sorted(element // 100 for element in drawn(4)) == list(range(12))


def test_evaluations_and_time_bound_the_elements_yet_each_tensor_gets_one() -> None:
    model = Model(dense_net([30, 3], inputs=(40,)), SQUARES)
    stack = draw_stack(np.random.default_rng(1), 1, 4, (40,), 3, SQUARES)

    def checked(evaluations: int, enough: bool = False) -> list[int]:
        check = GradientCheck(model, [stack], samples=12, evaluations=evaluations)
        return [check.tensor(number, lambda: enough).checked for number in range(4)]

    assert checked(4 * 4 * 12) == [12, 12, 12, 3]
    assert checked(4 * 4 * 2 + 3) == [2, 2, 2, 2]
    assert checked(1) == checked(1000, enough=True) == [1, 1, 1, 1]


def test_running_statistics_are_left_out_and_a_gradient_of_zero_is_right() -> None:
    """A bias before a batch normalization moves nothing: both derivatives are rounding and no more."""
    layers = (DenseRecord(5, True, InitializerRecord("he_normal")), BatchNormRecord(0.9, 1e-5), ReluRecord())
    architecture = Architecture((*layers, DenseRecord(3, True, InitializerRecord("glorot_uniform"))), (4,))
    checks = check_gradients(architecture, CROSS_ENTROPY, [draw_stack(np.random.default_rng(1), 2, 6, (4,), 3, CROSS_ENTROPY)])
    names = {check.name for check in checks}
    assert names == {
        "0.dense.weight",
        "0.dense.bias",
        "1.batch_norm.scale",
        "1.batch_norm.shift",
        "3.dense.weight",
        "3.dense.bias",
    }
    assert all(check.worst_relative_error < WORST and check.checked for check in checks)


def test_what_is_not_finite_is_the_worst() -> None:
    x, y = draw_stack(np.random.default_rng(1), 1, 4, (5,), 3, SQUARES)
    x[0, 2, 1] = np.inf
    checks = check_gradients(dense_net([3], inputs=(5,)), SQUARES, [(x, y)])
    assert all(np.isnan(check.worst_relative_error) for check in checks)


def test_float32_deviates_by_rounding_and_a_wrong_float32_pass_by_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(dense_net([32, 10], inputs=(20,)), CROSS_ENTROPY, seed=3)
    stack = draw_stack(np.random.default_rng(2), 2, 16, (20,), 10, CROSS_ENTROPY)
    check = GradientCheck(model, [stack], samples=1)
    assert all(0 < check.tensor(number).deviation < 1e-5 for number in range(4))
    forward = Dense.forward
    monkeypatch.setattr(Dense, "forward", lambda self, x, s: forward(self, x.round(1) if x.dtype == np.float32 else x, s))
    check = GradientCheck(Model(model.architecture, CROSS_ENTROPY, seed=3), [stack], samples=1)
    assert all(check.tensor(number).deviation > FLOAT32_TOLERANCE for number in (0, 1))
    assert all(check.tensor(number).worst_relative_error < WORST for number in range(4))


def test_rounding_alone_is_no_deviation() -> None:
    """One class: the gradient is 0, and in float32 what 0.9 + 0.1 - 1 leaves."""
    model = Model(dense_net([3, 1], inputs=(4,)), SoftmaxCrossEntropyRecord(label_smoothing=0.9), seed=3)
    x, y = draw_stack(np.random.default_rng(2), 2, 8, (4,), 1, CROSS_ENTROPY)
    check = GradientCheck(model, [(x, y)], samples=1)
    assert model.gradients.any()
    assert all(check.tensor(number).deviation < FLOAT32_TOLERANCE for number in range(4))


def test_a_check_is_plain_data() -> None:
    stack = draw_stack(np.random.default_rng(0), 1, 2, (2,), 2, SQUARES)
    (weight, _) = check_gradients(dense_net([2], inputs=(2,)), SQUARES, [stack])
    assert dataclasses.asdict(weight)["name"] == "0.dense.weight"
    assert len(weight.worst_index) == 2
