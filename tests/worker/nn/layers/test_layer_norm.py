"""Layer and RMS normalization: formula, gradients, shards, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.contract.errors import UserError
from lockstep.v1.model_pb2 import Layer, ModelSpec
from lockstep.v1.model_pb2 import LayerNorm as LayerNormMessage
from lockstep.v1.model_pb2 import RmsNorm as RmsNormMessage
from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from worker.nn.layers import build_layer, pieces
from worker.nn.parameters import Array
from worker.nn.shapes import Role, layer_shapes
from worker.specs import Architecture, LayerNormRecord, RmsNormRecord, architecture

RECORDS = [LayerNormRecord(1e-3), RmsNormRecord(1e-3)]
ROWS_OF_SOME_SHAPE = [(5,), (3, 4), (2, 3, 4), (6, 1)]
Record = LayerNormRecord | RmsNormRecord


def normal(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape) * 2 + 1


def by_hand(bench: LayerBench, x: Array) -> Array:
    own, epsilon = bench.parameters, bench.record.epsilon
    if isinstance(bench.record, RmsNormRecord):
        rms: Array = np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon)
        return x / rms * own["scale"]
    deviation: Array = np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
    mean: Array = x.mean(axis=-1, keepdims=True)
    return (x - mean) / deviation * own["scale"] + own["shift"]


@pytest.fixture(params=[5, 24, pieces.PIECE_FLOATS], ids=lambda floats: f"pieces of {floats}")
def piece_floats(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The length of a piece: so small that positions or shards are cut, and as it is."""
    monkeypatch.setattr("worker.nn.layers.pieces.PIECE_FLOATS", request.param)
    monkeypatch.setattr("worker.nn.layers.layer_norm.PIECE_FLOATS", request.param)
    return int(request.param)


@given(
    kind=st.sampled_from([LayerNormRecord, RmsNormRecord]),
    row=st.tuples(st.lists(st.integers(1, 3), max_size=2), st.integers(2, 5)),
    shards=st.integers(1, 3),
    rows=st.integers(1, 3),
    epsilon=st.sampled_from([1e-3, 1e-2, 1.0]),
    may_overwrite=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_the_gradient(
    kind: type[Record], row: tuple[list[int], int], shards: int, rows: int, epsilon: float, may_overwrite: bool
) -> None:
    x = normal(shards, rows, *row[0], row[1])
    assert worst_error(kind(epsilon), x, may_overwrite=may_overwrite) < 1e-6


@pytest.mark.parametrize("record", RECORDS, ids=str)
@pytest.mark.parametrize("row", [(5,), (3, 4), (2, 3, 4)], ids=str)
def test_the_gradient_in_pieces(record: Record, row: tuple[int, ...], piece_floats: int) -> None:
    assert worst_error(record, normal(3, 3, *row)) < 1e-6


@pytest.mark.parametrize("record", RECORDS, ids=str)
@pytest.mark.parametrize("row", ROWS_OF_SOME_SHAPE, ids=str)
@pytest.mark.parametrize("may_overwrite", [False, True])
def test_it_is_the_formula(record: Record, row: tuple[int, ...], may_overwrite: bool, piece_floats: int) -> None:
    x = normal(3, 3, *row)
    for training in (True, False):
        bench = LayerBench(record, row, shards=3, training=training, may_overwrite=may_overwrite)
        np.testing.assert_allclose(bench.forward(x), by_hand(bench, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("record", RECORDS, ids=str)
@pytest.mark.parametrize("row", [*ROWS_OF_SOME_SHAPE, (33, 128), (70, 513), (2048,)], ids=str)
@pytest.mark.parametrize("may_overwrite", [False, True])
def test_a_stack_is_a_loop(record: Record, row: tuple[int, ...], may_overwrite: bool) -> None:
    for rows in (1, 7):
        stack_is_loop(record, normal(5, rows, *row), may_overwrite=may_overwrite)


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_a_stack_is_a_loop_in_pieces(record: Record, piece_floats: int) -> None:
    stack_is_loop(record, normal(5, 4, 3, 5))


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_training_and_evaluation_give_the_same_bits(record: Record) -> None:
    x = normal(2, 40, 20, 48).astype(np.float32)
    ways = [LayerBench(record, (20, 48), rows=40, dtype=np.float32, training=training) for training in (True, False)]
    assert ways[0].forward(x).tobytes() == ways[1].forward(x).tobytes()


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_what_is_learned_needs_no_input_gradient(record: Record) -> None:
    x, dy = normal(2, 6, 3, 5), normal(2, 6, 3, 5, seed=2)
    ways = [LayerBench(record, (3, 5), rows=6) for _ in range(2)]
    ways[1].layer = build_layer(record, replace(ways[1].layer.setting, needs_input_gradient=False))
    ways[1].layer.prepare_backward(ways[1].dy)
    for bench in ways:
        bench.forward(x)
        bench.backward(dy)
    for name, gradient in ways[0].gradients.items():
        assert ways[1].gradients[name].tobytes() == gradient.tobytes(), name


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_nan_stays_at_its_position(record: Record) -> None:
    x = normal(2, 4, 3, 5).astype(np.float32)
    x[1, 2, 1, 4] = np.nan
    nan = np.isnan(LayerBench(record, (3, 5), rows=4, dtype=np.float32).forward(x))
    assert nan[1, 2, 1].all()
    assert nan.sum() == 5


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_another_shape_is_refused(record: Record) -> None:
    with pytest.raises(UserError, match=r"layers\[0\]"):
        LayerBench(record, (3,)).layer.forward(np.zeros((2, 4, 3)), None)


@pytest.mark.parametrize("kind", [LayerNormRecord, RmsNormRecord])
@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_an_epsilon_that_cannot_be(kind: type[Record], epsilon: float) -> None:
    with pytest.raises(UserError) as caught:
        layer_shapes(Architecture((kind(epsilon),), (3,)))
    assert [(v.place, v.reason) for v in caught.value.violations] == [(f"model.layers[0].{kind.kind}.epsilon", "INVALID_FIELD")]


@pytest.mark.parametrize(("record", "values"), [(RECORDS[0], {"scale": 1.0, "shift": 0.0}), (RECORDS[1], {"scale": 1.0})])
def test_its_tensors(record: Record, values: dict[str, float]) -> None:
    (shapes,) = layer_shapes(Architecture((record,), (4, 3)))
    assert {name: tensor.initial.value for name, tensor in shapes.tensors.items()} == values
    assert {(tensor.shape, tensor.role) for tensor in shapes.tensors.values()} == {((3,), Role.OFFSET)}
    assert shapes.output_shape == (4, 3)


def test_the_records() -> None:
    layers = [
        Layer(layer_norm=LayerNormMessage()),
        Layer(layer_norm=LayerNormMessage(epsilon=0.5)),
        Layer(rms_norm=RmsNormMessage()),
        Layer(rms_norm=RmsNormMessage(epsilon=0.25)),
    ]
    want = (LayerNormRecord(1e-5), LayerNormRecord(0.5), RmsNormRecord(1e-6), RmsNormRecord(0.25))
    assert architecture(ModelSpec(layers=layers), (3,)).layers == want
