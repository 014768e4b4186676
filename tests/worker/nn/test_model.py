"""The model's face: parameters, memory, prediction, evaluation, and what it says about wrong input."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from lockstep.contract.errors import UserError
from tests.worker.nn.allocations import peak_bytes
from tests.worker.nn.networks import CROSS_ENTROPY, SQUARES, dense_net, draw_stack
from worker.nn.layers import Dense, Relu
from worker.nn.layers.transpose import Transpose
from worker.nn.model import Model
from worker.specs import Architecture, DenseRecord, InitializerRecord, LossRecord, ReluRecord

ZEROS = InitializerRecord("zeros")


def model(units: tuple[int, ...] = (16, 5), loss: LossRecord = CROSS_ENTROPY, **options: Any) -> Model:
    return Model(dense_net(units, inputs=(8,)), loss, **options)


def draw(shards: int, rows: int, loss: LossRecord = CROSS_ENTROPY) -> Any:
    return draw_stack(np.random.default_rng(0), shards, rows, (8,), 5, loss)


# Parameters


def test_names_and_public_shapes() -> None:
    shapes = {name: view.shape for name, view in model().named_parameters().items()}
    assert shapes == {"0.dense.weight": (8, 16), "0.dense.bias": (16,), "2.dense.weight": (16, 5), "2.dense.bias": (5,)}


def test_named_parameters_are_views() -> None:
    net = model()
    net.named_parameters()["0.dense.weight"][3, 4] = 77
    assert net.named_parameters()["0.dense.weight"][3, 4] == 77
    assert np.count_nonzero(net.parameters == 77) == 1


def test_tensors_are_aligned_to_64_bytes() -> None:
    net = model()
    for vector in (net.parameters, net.gradients):
        assert vector.ctypes.data % 64 == 0
    assert all(entry.offset % 16 == 0 for entry in net.layout.entries)
    assert net.layout.size % 16 == 0


def test_the_seed_decides_the_initial_weights() -> None:
    assert model(seed=1).parameters.tobytes() == model(seed=1).parameters.tobytes()
    assert model(seed=1).parameters.tobytes() != model(seed=2).parameters.tobytes()
    tensors = model(seed=1).named_parameters()
    assert not tensors["0.dense.bias"].any()
    assert abs(tensors["0.dense.weight"]).max() > 0


def test_he_and_glorot_have_their_variances() -> None:
    tensors = Model(dense_net((400, 300), inputs=(200,)), CROSS_ENTROPY, seed=3).named_parameters()
    assert tensors["0.dense.weight"].std() == pytest.approx(math.sqrt(2 / 200), rel=0.02)
    assert tensors["2.dense.weight"].std() == pytest.approx(math.sqrt(2 / 700), rel=0.02)
    assert abs(tensors["2.dense.weight"]).max() <= math.sqrt(6 / 700)


def test_given_vectors_are_used_in_place() -> None:
    source = model(seed=4)
    gradients = np.zeros((2, source.layout.size), np.float32)
    net = model(parameters=source.parameters, gradients=gradients)
    assert net.parameters is source.parameters
    net.loss_and_gradient([draw(2, 4)], ((0, 1), (1, 2)))
    assert gradients.any(axis=1).all()


def test_floats_between_tensors_stay_zero() -> None:
    net = model(units=(13, 5))
    net.loss_and_gradient([draw(4, 3)])
    used = np.zeros(net.layout.size, bool)
    for entry in net.layout.entries:
        used[entry.offset : entry.offset + entry.size] = True
    assert not net.parameters[~used].any()
    assert not net.gradients[:, ~used].any()


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="parameters: got float32"):
        model(parameters=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="gradients: got float64"):
        model(gradients=np.zeros((1, model().layout.size)))
    one = model(gradients=np.zeros((1, model().layout.size), np.float32))
    with pytest.raises(ValueError, match="2 subtrees need as many"):
        one.loss_and_gradient([draw(2, 4)], ((0, 1), (1, 2)))


# Memory


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, SQUARES])
@pytest.mark.parametrize("combine", [None, ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5))])
def test_no_array_is_allocated_in_a_step_after_the_first(loss: LossRecord, combine: Any) -> None:
    net = Model(dense_net((96, 64, 5), inputs=(80,)), loss)
    rng = np.random.default_rng(0)
    stacks = [draw_stack(rng, shards, rows, (80,), 5, loss) for shards, rows in ((3, 65), (2, 64))]
    for _ in range(3):
        net.loss_and_gradient(stacks, combine)

    def five_times() -> None:
        for _ in range(5):
            net.loss_and_gradient(stacks, combine)

    # Views and numbers come and go; the smallest activation would take 5 * 64 * 4 bytes, the others 50 KiB.
    assert peak_bytes(five_times) < 6000


def test_few_buffer_layouts_are_kept() -> None:
    net = model()
    for rows in range(1, 30):
        net.loss_and_gradient([draw(1, rows)])
    assert len(net._steps) <= 8


def test_a_change_in_a_buffer_is_seen() -> None:
    """A worker fills the same arrays anew in every step."""
    net = model()
    x, y = draw(2, 4)
    net.loss_and_gradient([(x, y)])
    first = net.gradients[0].copy()
    x[...] += 1
    net.loss_and_gradient([(x, y)])
    assert net.gradients[0].tobytes() != first.tobytes()


# Prediction and evaluation


def test_a_row_has_the_same_bits_whatever_the_number_of_rows() -> None:
    net = model(units=(33, 5))
    x = np.random.default_rng(1).standard_normal((600, 8)).astype(np.float32)
    whole = net.predict(x)
    assert whole.shape == (600, 5)
    for rows in (1, 7, 255, 256, 257, 511, 599):
        assert net.predict(x[:rows]).tobytes() == whole[:rows].tobytes()
    assert net.predict(x[256:300]).tobytes() == whole[256:300].tobytes()


def test_prediction_is_the_formula() -> None:
    net = model(seed=2)
    x = np.random.default_rng(1).standard_normal((9, 8)).astype(np.float32)
    w, w2, b, b2 = net.named_parameters().values()
    np.testing.assert_allclose(net.predict(x), np.maximum(x @ w + b, 0) @ w2 + b2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 100, 256])
def test_evaluation_agrees_with_prediction(rows: int) -> None:
    net = model(seed=2)
    x, y = draw(1, rows)
    sums = net.evaluate_block(x[0], y[0], net.new_counts())
    z = net.predict(x[0]).astype(np.float64)
    expected = (np.log(np.exp(z).sum(axis=1)) - z[np.arange(rows), y[0]]).sum()
    assert sums.loss_sum == sums.log_loss_sum == pytest.approx(expected, rel=1e-5)
    assert (sums.denominator, sums.rows, sums.labels, sums.numbers) == (rows, rows, rows, 0)
    assert sums.correct == (z.argmax(axis=1) == y[0]).sum()


def test_evaluation_of_numbers() -> None:
    net = model(loss=SQUARES, seed=2)
    x, y = draw(1, 20, SQUARES)
    sums = net.evaluate_block(x[0], y[0], net.new_counts())
    assert sums.loss_sum == pytest.approx(((net.predict(x[0]) - y[0]) ** 2).mean(axis=1).sum(), rel=1e-5)
    assert (sums.denominator, sums.rows, sums.labels, sums.numbers) == (20.0, 20, 0, 100)


# Wrong input


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        ((2, 4, 9), "rows of shape (9,)"),
        ((2, 4), "rows of shape ()"),
        ((2, 4, 8, 1), "rows of shape (8, 1)"),
        ((8,), "a stack of shape (8,)"),
    ],
)
def test_a_wrong_shape_names_the_layer(shape: tuple[int, ...], got: str) -> None:
    with pytest.raises(UserError) as raised:
        model().loss_and_gradient([(np.zeros(shape, np.float32), np.zeros(shape[:2], np.int64))])
    text = str(raised.value)
    assert text.startswith("layers[0].dense: got ")
    assert got in text
    assert text.endswith("it needs (8,)")


def test_a_layer_fed_a_wrong_shape_names_itself() -> None:
    net = Model(Architecture((DenseRecord(4, True, ZEROS), ReluRecord(), DenseRecord(3, True, ZEROS)), (8,)), CROSS_ENTROPY)
    net.loss_and_gradient([draw_stack(np.random.default_rng(0), 2, 4, (8,), 3, CROSS_ENTROPY)])
    (step,) = net._steps.values()
    layers = step.passes[0].layers
    assert isinstance(layers[3], Dense)
    assert [type(layer) for layer in layers] == [Transpose, Dense, Relu, Dense]
    with pytest.raises(UserError, match=r"layers\[2\].dense: got an input of shape \(2, 5, 4\); it needs \(2, 4, 4\)"):
        layers[3].forward(np.zeros((2, 5, 4), np.float32), None)


@pytest.mark.parametrize("shape", [(0, 4, 8), (2, 0, 8)])
def test_no_rows_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"layers\[0\].dense: got a stack .* at least one shard of at least one row"):
        model().loss_and_gradient([(np.zeros(shape, np.float32), np.zeros(shape[:2], np.int64))])
    with pytest.raises(UserError, match=r"layers\[0\].dense: got 0 rows"):
        model().predict(np.zeros((0, 8), np.float32))


def test_wrong_kinds_of_arrays_are_refused() -> None:
    net = model()
    x, y = draw(2, 4)
    for wrong in [(x.astype(np.float64), y), (x, y.astype(np.int32)), (x, y[:1]), (x[:, ::-1], y), (x, y[..., None])]:
        with pytest.raises(UserError, match=r"it needs C-contiguous inputs float32 \(S, R, \*\(8,\)\) and targets int64"):
            net.loss_and_gradient([wrong])
    for stacks in ([], [(x, y)] * 3):
        with pytest.raises(UserError, match="one stack or two"):
            net.loss_and_gradient(stacks)


# Numbers that are not finite


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_an_input_that_is_not_finite_is_found(value: float) -> None:
    net = model(seed=1)
    large, small = draw(2, 4), draw(3, 3)
    small[0][1, 2, 3] = value
    with np.errstate(all="ignore"):
        assert not net.loss_and_gradient([large, small]).finite
        place = net.locate_non_finite([large, small])
    assert place is not None
    assert (place.layer, place.shard, place.where, place.rows) == ("layers[0].dense", 3, "input", (2,))


def test_an_overflow_is_found_at_its_layer() -> None:
    net = model(seed=1)
    x, y = draw(4, 3)
    x[2], x[3, 1] = 3e37, 3e37
    net.named_parameters()["2.dense.weight"][...] = 1e30
    with np.errstate(all="ignore"):
        assert not net.loss_and_gradient([(x, y)]).finite
        place = net.locate_non_finite([(x, y)])
    assert place is not None
    assert (place.layer, place.shard, place.where, place.rows) == ("layers[2].dense", 2, "output", (0, 1, 2))


def test_parameters_that_are_not_finite_are_found() -> None:
    net = model(seed=1)
    net.named_parameters()["2.dense.bias"][1] = math.nan
    with np.errstate(all="ignore"):
        assert not net.loss_and_gradient([draw(4, 3)]).finite
        place = net.locate_non_finite([draw(4, 3)])
    assert place is not None
    assert (place.layer, place.where, place.shard, place.rows) == ("layers[2].dense", "parameters", None, ())


def test_a_gradient_that_overflows_alone_is_found() -> None:
    """The loss is finite; the product of large inputs and their errors is not."""
    net = Model(dense_net((5,), inputs=(8,)), SQUARES)
    net.parameters.fill(0)
    x, y = draw_stack(np.random.default_rng(0), 2, 4, (8,), 5, SQUARES)
    x[1, :, 0] = 3e38
    y[...] = 1e15
    with np.errstate(all="ignore"):
        result = net.loss_and_gradient([(x, y)])
        place = net.locate_non_finite([(x, y)])
    assert all(map(math.isfinite, result.loss_sums))
    assert not result.finite
    assert place is not None
    assert (place.layer, place.shard, place.where) == ("layers[0].dense", 1, "gradient of the parameters")
    assert place.rows == ()


def test_a_loss_that_overflows_is_that_of_its_rows() -> None:
    net = model(loss=SQUARES)
    large, small = draw(2, 4, SQUARES), draw(3, 3, SQUARES)
    large[1][1, [0, 2], 4] = 3e38
    small[1][0, 1] = 3e38
    with np.errstate(all="ignore"):
        place = net.locate_non_finite([large, small])
    assert place is not None
    assert (place.layer, place.shard, place.where, place.rows) == ("loss", 1, "loss", (0, 2))


def test_shards_that_overflow_in_their_sum_alone_are_none_of_them_named() -> None:
    net = Model(dense_net((5,), inputs=(8,)), SQUARES)
    net.parameters.fill(0)
    x, y = draw_stack(np.random.default_rng(0), 2, 1, (8,), 5, SQUARES)
    x[...], y[...] = 2.5e38, 2.5  # the gradient of each shard is -2 / 5 x y
    with np.errstate(all="ignore"):
        assert not net.loss_and_gradient([(x, y)]).finite
        place = net.locate_non_finite([(x, y)])
    assert place is not None
    assert (place.where, place.shard, place.rows) == ("sum of the shards' gradients", None, ())


def test_the_earliest_place_is_the_same_whoever_has_the_shards() -> None:
    """Of a later layer in an early shard and an earlier layer in a late one, of tensors, losses and their gradients."""
    net = Model(dense_net((5,), inputs=(8,)), SQUARES)
    net.parameters.fill(0)
    rng = np.random.default_rng(0)
    for wrong in (
        {0: "loss", 3: "output"},
        {1: "gradient", 2: "loss"},
        {2: "gradient", 3: "gradient"},
        {0: "loss", 2: "input"},
    ):
        x, y = draw_stack(rng, 4, 3, (8,), 5, SQUARES)
        for shard, kind in wrong.items():
            if kind == "loss":
                y[shard, 1, 2] = 3e38
            elif kind == "gradient":
                x[shard, :, 0], y[shard] = 3e38, 1e15
            else:
                x[shard, 2, 3] = np.inf if kind == "input" else np.nan
        found = set()
        for borders in ((0, 4), (0, 2, 4), (0, 1, 2, 3, 4)):
            places = []
            for first, end in pairwise(borders):
                with np.errstate(all="ignore"):
                    place = net.locate_non_finite([(x[first:end].copy(), y[first:end].copy())])
                if place is not None:
                    shard = first + (place.shard or 0)
                    places.append((place.moment, shard, place.layer, place.where, place.rows))
            found.add(min(places))
        assert len(found) == 1, wrong


def test_large_finite_gradients_are_finite() -> None:
    net = Model(dense_net((5,), inputs=(8,)), SQUARES)
    net.parameters.fill(0)
    x, y = draw_stack(np.random.default_rng(0), 2, 4, (8,), 5, SQUARES)
    x[...] = 1e20
    y[...] = 1e10
    with np.errstate(over="ignore"):  # as a worker's steps run: the sum of squares overflows
        result = net.loss_and_gradient([(x, y)])
        place = net.locate_non_finite([(x, y)])
    assert result.finite and place is None
    assert abs(net.gradients).max() > 1e29


# Nothing to learn


def test_a_network_without_parameters_computes() -> None:
    net = Model(Architecture((ReluRecord(),), (5,)), CROSS_ENTROPY)
    x, y = draw_stack(np.random.default_rng(0), 2, 4, (5,), 5, CROSS_ENTROPY)
    assert net.loss_and_gradient([(x, y)]).finite
    assert net.gradients.shape == (1, 0)
    np.testing.assert_array_equal(net.predict(x[0]), np.maximum(x[0], 0))
