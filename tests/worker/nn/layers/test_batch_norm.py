"""Batch normalization: formula, gradients, statistics, shards, the rectifier in it, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.contract.errors import UserError
from lockstep.v1.model_pb2 import BatchNorm as BatchNormMessage
from lockstep.v1.model_pb2 import Layer, ModelSpec
from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from worker.nn.layers import build_layer, pieces
from worker.nn.parameters import Array
from worker.nn.shapes import Role, layer_shapes
from worker.specs import Architecture, BatchNormRecord, ReluRecord, architecture

RECORD = BatchNormRecord(momentum=0.9, epsilon=1e-3)
ROWS_OF_SOME_SHAPE = [(5,), (1,), (3, 4), (2, 3, 1), (2, 3, 4)]


def normal(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape) * 2 + 1


def by_hand(bench: LayerBench, x: Array) -> Array:
    """y for x (S, R, ..., C), each shard by itself."""
    parameters, ys = bench.parameters, []
    for shard in x:
        flat = shard.reshape(-1, shard.shape[-1])
        normalized = (shard - flat.mean(axis=0)) / np.sqrt(flat.var(axis=0) + bench.record.epsilon)
        ys.append(normalized * parameters["scale"] + parameters["shift"])
    return np.array(ys)


@pytest.fixture(params=[8, 24, pieces.PIECE_FLOATS], ids=lambda floats: f"pieces of {floats}")
def piece_floats(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The length of a piece: so small that channels, positions or shards are cut, and as it is."""
    monkeypatch.setattr("worker.nn.layers.pieces.PIECE_FLOATS", request.param)
    monkeypatch.setattr("worker.nn.layers.batch_norm.PIECE_FLOATS", request.param)
    return int(request.param)


@given(
    row=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    shards=st.integers(1, 3),
    rows=st.integers(3, 5),
    epsilon=st.sampled_from([1e-5, 1e-2, 1.0]),
    rectified=st.booleans(),
    may_overwrite=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_the_gradient(row: list[int], shards: int, rows: int, epsilon: float, rectified: bool, may_overwrite: bool) -> None:
    x = normal(shards, rows, *row)
    activation = ReluRecord() if rectified else None
    record = BatchNormRecord(epsilon=epsilon)
    assert worst_error(record, x, activation=activation, may_overwrite=may_overwrite) < 1e-6


@pytest.mark.parametrize("row", ROWS_OF_SOME_SHAPE, ids=str)
@pytest.mark.parametrize("rectified", [False, True])
def test_the_gradient_in_pieces(row: tuple[int, ...], rectified: bool, piece_floats: int) -> None:
    assert worst_error(RECORD, normal(3, 4, *row), activation=ReluRecord() if rectified else None) < 1e-6


@pytest.mark.parametrize("row", ROWS_OF_SOME_SHAPE, ids=str)
@pytest.mark.parametrize("may_overwrite", [False, True])
def test_it_is_the_formula(row: tuple[int, ...], may_overwrite: bool, piece_floats: int) -> None:
    x = normal(3, 5, *row)
    for activation in (None, ReluRecord()):
        bench = LayerBench(RECORD, row, shards=3, rows=5, activation=activation, may_overwrite=may_overwrite)
        want = by_hand(bench, x)
        np.testing.assert_allclose(bench.forward(x), want if activation is None else np.maximum(want, 0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", ROWS_OF_SOME_SHAPE, ids=str)
def test_what_the_running_statistics_get(row: tuple[int, ...], piece_floats: int) -> None:
    x = normal(3, 5, *row)
    bench = LayerBench(RECORD, row, shards=3, rows=5)
    bench.backward(bench.forward(x))
    flat = x.reshape(3, -1, row[-1])
    np.testing.assert_allclose(bench.gradients["running_mean"], 5 * flat.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(bench.gradients["running_variance"], 5 * flat.var(axis=1, ddof=1), rtol=1e-12)


@pytest.mark.parametrize("row", ROWS_OF_SOME_SHAPE, ids=str)
@pytest.mark.parametrize("may_overwrite", [False, True])
def test_evaluation_takes_the_running_statistics(row: tuple[int, ...], may_overwrite: bool, piece_floats: int) -> None:
    rng = np.random.default_rng(4)
    x = normal(2, 1, *row)
    for activation in (None, ReluRecord()):
        options = {"activation": activation, "may_overwrite": may_overwrite}
        bench = LayerBench(RECORD, row, shards=2, rows=1, training=False, **options)  # type: ignore[arg-type]
        own = bench.parameters
        own["running_mean"][:] = rng.standard_normal(row[-1])
        own["running_variance"][:] = rng.uniform(0.5, 2, row[-1])
        deviation = np.sqrt(own["running_variance"] + RECORD.epsilon)
        want = (x - own["running_mean"]) / deviation * own["scale"] + own["shift"]
        np.testing.assert_allclose(bench.forward(x), want if activation is None else np.maximum(want, 0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", [*ROWS_OF_SOME_SHAPE, (7, 9, 16), (40, 1), (600,)], ids=str)
@pytest.mark.parametrize("rows", [2, 7, 64])
@pytest.mark.parametrize("may_overwrite", [False, True])
def test_a_stack_is_a_loop(row: tuple[int, ...], rows: int, may_overwrite: bool) -> None:
    for activation in (None, ReluRecord()):
        stack_is_loop(RECORD, normal(5, rows, *row), activation=activation, may_overwrite=may_overwrite)


@pytest.mark.parametrize("row", [(6,), (3, 3, 6)], ids=str)
def test_a_stack_is_a_loop_in_pieces(row: tuple[int, ...], piece_floats: int) -> None:
    stack_is_loop(RECORD, normal(5, 4, *row), activation=ReluRecord())


def test_a_rectifier_in_it_is_one_behind_it() -> None:
    x, dy = normal(2, 6, 3, 5).astype(np.float32), normal(2, 6, 3, 5, seed=2).astype(np.float32)
    alone = LayerBench(RECORD, (3, 5), rows=6, dtype=np.float32)
    behind = LayerBench(ReluRecord(), (3, 5), rows=6, dtype=np.float32)
    both = LayerBench(RECORD, (3, 5), rows=6, dtype=np.float32, activation=ReluRecord())
    assert both.forward(x).tobytes() == behind.forward(alone.forward(x)).tobytes()
    assert both.backward(dy).tobytes() == alone.backward(behind.backward(dy)).tobytes()
    for name, gradient in alone.gradients.items():
        assert both.gradients[name].tobytes() == gradient.tobytes(), name


@pytest.mark.parametrize("rectified", [False, True])
def test_what_is_learned_needs_no_input_gradient(rectified: bool) -> None:
    x, dy = normal(2, 6, 3, 5), normal(2, 6, 3, 5, seed=2)
    ways = [LayerBench(RECORD, (3, 5), rows=6, activation=ReluRecord() if rectified else None) for _ in range(2)]
    ways[1].layer = build_layer(RECORD, replace(ways[1].layer.setting, needs_input_gradient=False))
    ways[1].layer.prepare_backward(ways[1].dy)
    for bench in ways:
        bench.forward(x)
        bench.backward(dy)
    for name, gradient in ways[0].gradients.items():
        assert ways[1].gradients[name].tobytes() == gradient.tobytes(), name


def test_a_mean_far_from_zero_costs_no_accuracy() -> None:
    x = (np.random.default_rng(5).standard_normal((1, 64, 6, 6, 3)) + 1000).astype(np.float32)
    bench = LayerBench(RECORD, (6, 6, 3), shards=1, rows=64, dtype=np.float32)
    assert float(np.abs(bench.forward(x) - by_hand(bench, x.astype(np.float64))).max()) < 2e-3


def test_nan_stays_in_its_channel_and_shard() -> None:
    x = normal(2, 4, 3).astype(np.float32)
    x[1, 2, 1] = np.nan
    bench = LayerBench(RECORD, (3,), rows=4, dtype=np.float32, activation=ReluRecord())
    nan = np.isnan(bench.forward(x))
    assert nan[1, :, 1].all()
    assert nan.sum() == 4


@pytest.mark.parametrize(("row", "rows"), [((4,), 1), ((1, 1, 4), 1)])
def test_one_number_has_no_variance(row: tuple[int, ...], rows: int) -> None:
    with pytest.raises(UserError) as caught:
        LayerBench(RECORD, row, rows=rows)
    (violation,) = caught.value.violations
    assert violation.reason == "TOO_FEW_VALUES"
    assert violation.place.endswith("layers[0].batch_norm")
    LayerBench(RECORD, row, rows=rows, training=False).forward(normal(2, rows, *row))


def test_another_shape_is_refused() -> None:
    with pytest.raises(UserError, match=r"layers\[0\]"):
        LayerBench(RECORD, (3,)).layer.forward(np.zeros((2, 4, 3)), None)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_a_momentum_that_cannot_be(momentum: float) -> None:
    with pytest.raises(UserError) as caught:
        layer_shapes(Architecture((BatchNormRecord(momentum=momentum),), (3,)))
    assert [(v.place, v.reason) for v in caught.value.violations] == [("model.layers[0].batch_norm.momentum", "INVALID_FIELD")]


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_an_epsilon_that_cannot_be(epsilon: float) -> None:
    with pytest.raises(UserError) as caught:
        layer_shapes(Architecture((BatchNormRecord(epsilon=epsilon),), (3,)))
    assert [(v.place, v.reason) for v in caught.value.violations] == [("model.layers[0].batch_norm.epsilon", "INVALID_FIELD")]


def test_its_tensors() -> None:
    (shapes,) = layer_shapes(Architecture((BatchNormRecord(momentum=0.75),), (4, 4, 3)))
    found = {name: (tensor.shape, tensor.initial.value, tensor.role) for name, tensor in shapes.tensors.items()}
    assert found == {
        "scale": ((3,), 1.0, Role.OFFSET),
        "shift": ((3,), 0.0, Role.OFFSET),
        "running_mean": ((3,), 0.0, Role.STATE),
        "running_variance": ((3,), 1.0, Role.STATE),
    }
    assert {tensor.keep for tensor in shapes.tensors.values() if tensor.role is Role.STATE} == {0.75}
    assert shapes.output_shape == (4, 4, 3)


def test_the_record() -> None:
    messages = [BatchNormMessage(), BatchNormMessage(momentum=0, epsilon=0.5)]
    model = ModelSpec(layers=[Layer(batch_norm=message) for message in messages])
    assert architecture(model, (3,)).layers == (BatchNormRecord(0.9, 1e-5), BatchNormRecord(0.0, 0.5))
