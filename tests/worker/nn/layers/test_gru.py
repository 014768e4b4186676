"""The gated recurrent unit."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from google.protobuf.json_format import Parse
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.contract.errors import UserError
from lockstep.v1.model_pb2 import ModelSpec
from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from tests.worker.nn.networks import CROSS_ENTROPY, draw_stack
from worker.nn.gradient_check import check_gradients
from worker.nn.model import Model
from worker.nn.parameters import Array
from worker.nn.shapes import layer_shapes
from worker.specs import Architecture, DenseRecord, GruRecord, InitializerRecord, LayerRecord, architecture

FEW = settings(max_examples=12, deadline=None)
SMALL = st.integers(1, 3)

DENSE = DenseRecord(4, True, InitializerRecord("glorot_uniform"))
# Once first, where no input gradient is needed and x is a view; once behind a layer that takes its rows first.
NETWORKS: list[tuple[LayerRecord, ...]] = [
    (GruRecord(5, True), DENSE, GruRecord(4, False), DENSE),
    (GruRecord(5, False), DENSE),
]


def numbers(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape)


def state_after(x: Array, tensors: dict[str, Array]) -> list[Array]:
    """The state at each position of one row x (L, X); the tensors are the layer's, the weights on their side."""
    W, U = tensors["input_weight"].T, tensors["state_weight"].T
    h = np.zeros(len(U))
    states: list[Array] = []
    for x_l in x:
        a_r, a_u, a_n = np.split(x_l @ W + tensors["input_bias"], 3)
        q_r, q_u, q_n = np.split(h @ U + tensors["state_bias"], 3)
        r, u = 1 / (1 + np.exp(-a_r - q_r)), 1 / (1 + np.exp(-a_u - q_u))
        n = np.tanh(a_n + r * q_n)
        h = (1 - u) * n + u * h
        states.append(h)
    return states


@FEW
@given(SMALL, SMALL, SMALL, SMALL, SMALL, st.booleans())
def test_the_gradient(shards: int, rows: int, length: int, width: int, units: int, sequence: bool) -> None:
    assert worst_error(GruRecord(units, sequence), numbers(shards, rows, length, width)) < 1e-6


@FEW
@given(SMALL, SMALL, st.integers(1, 6), SMALL, st.integers(1, 5), st.booleans(), st.booleans())
def test_it_is_the_formula(shards: int, rows: int, length: int, width: int, units: int, sequence: bool, training: bool) -> None:
    x = numbers(shards, rows, length, width)
    bench = LayerBench(GruRecord(units, sequence), (length, width), shards=shards, rows=rows, training=training)
    y = bench.forward(x)
    assert y.shape == (shards, rows, *([length] if sequence else []), units)
    for shard in range(shards):
        for row in range(rows):
            states = state_after(x[shard, row], bench.parameters)
            assert y[shard, row] == pytest.approx(np.array(states if sequence else states[-1]), rel=1e-12, abs=1e-14)


@FEW
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_a_stack_is_a_loop(shards: int, rows: int, length: int, width: int, units: int, sequence: bool) -> None:
    stack_is_loop(GruRecord(units, sequence), numbers(shards, rows, length, width))


@pytest.mark.parametrize("sequence", [False, True])
def test_a_stack_in_several_groups_is_a_loop(sequence: bool) -> None:
    # 70 units for 100 rows: two shards in a group, so that the last has one.
    stack_is_loop(GruRecord(70, sequence), numbers(5, 100, 4, 33))


@pytest.mark.parametrize("sequence", [False, True])
def test_long_sequences_stay_finite_and_passes_repeat(sequence: bool) -> None:
    bench = LayerBench(GruRecord(16, sequence), (64, 8), dtype=np.float32)
    x = 100 * numbers(2, 3, 64, 8)
    seen = []
    for _ in range(2):
        y = bench.forward(x)
        dx = bench.backward(np.ones_like(y))
        seen.append([a.tobytes() for a in (y, dx, *bench.gradients.values())])
        assert all(np.isfinite(a).all() for a in (y, dx, *bench.gradients.values()))
    assert seen[0] == seen[1]


def test_evaluation_gives_the_bits_of_training() -> None:
    x = numbers(2, 3, 7, 5)
    ways = [LayerBench(GruRecord(6, True), (7, 5), dtype=np.float32, training=training) for training in (False, True)]
    assert ways[0].forward(x).tobytes() == ways[1].forward(x).tobytes()


def test_x_may_be_a_strided_view() -> None:
    x, bench = numbers(2, 3, 7, 5), LayerBench(GruRecord(6, False), (7, 5))
    want = bench.forward(x)
    dy = np.moveaxis(numbers(*want.shape), 1, -1).copy()
    bench.dy[...] = dy
    dx = bench.layer.backward(bench.dy).copy()
    weight = bench.gradients["input_weight"].copy()
    assert np.moveaxis(bench.layer.forward(np.moveaxis(x, 1, -1), None), -1, 1) == pytest.approx(want)
    assert bench.layer.backward(bench.dy) == pytest.approx(dx)
    assert bench.gradients["input_weight"] == pytest.approx(weight)


@pytest.mark.parametrize("layers", NETWORKS)
def test_the_chain_rule_in_a_network(layers: tuple[LayerRecord, ...]) -> None:
    rng = np.random.default_rng(0)
    stacks = [draw_stack(rng, s, r, (6, 3), 4, CROSS_ENTROPY, np.float64) for s, r in ((3, 4), (2, 3))]
    checks = check_gradients(Architecture(layers, (6, 3)), CROSS_ENTROPY, stacks, seed=2)
    assert {check.name: check.worst_relative_error for check in checks if check.worst_relative_error > 1e-6} == {}


@pytest.mark.parametrize(("rows", "width", "units"), [(1, 1, 1), (1, 5, 3), (7, 1, 16), (9, 33, 20)])
def test_a_stack_is_a_loop_in_a_network(rows: int, width: int, units: int) -> None:
    net = Architecture((GruRecord(units, True), GruRecord(units, False), DENSE), (3, width))
    x, y = draw_stack(np.random.default_rng(1), 4, rows, (3, width), 4, CROSS_ENTROPY)
    model, alone = Model(net, CROSS_ENTROPY, seed=3), Model(net, CROSS_ENTROPY, seed=3)
    model.loss_and_gradient([(x, y)], tuple((s, s + 1) for s in range(4)))
    for shard in range(4):
        alone.loss_and_gradient([(x[shard : shard + 1], y[shard : shard + 1])])
        assert alone.gradients[0].tobytes() == model.gradients[shard].tobytes()


@pytest.mark.parametrize("layers", [(GruRecord(5, True), GruRecord(4, False), DENSE), (GruRecord(5, False), DENSE)])
def test_a_step_allocates_nothing_after_the_first(layers: tuple[LayerRecord, ...]) -> None:
    stack = draw_stack(np.random.default_rng(1), 4, 50, (6, 3), 4, CROSS_ENTROPY)
    model = Model(Architecture(layers, (6, 3)), CROSS_ENTROPY)
    for _ in range(2):
        model.loss_and_gradient([stack])
    tracemalloc.start()
    model.loss_and_gradient([stack])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8192


def test_nan_stays_nan() -> None:
    x = numbers(2, 3, 4, 5)
    x[1, 2, 0, 3] = np.nan
    broken = np.isnan(LayerBench(GruRecord(6, False), (4, 5)).forward(x))
    assert broken[1, 2].all()
    assert broken.sum() == 6


def test_a_wrong_input_is_refused() -> None:
    with pytest.raises(UserError, match=r"layers\[0\]\.gru: got an input of shape \(2, 4, 5, 2\)"):
        LayerBench(GruRecord(6, False), (4, 5)).layer.forward(np.zeros((2, 4, 5, 2)), None)


def test_its_message_is_read() -> None:
    model = Parse('{"layers": [{"gru": {"units": 7, "sequence": true}}, {"gru": {"units": 3}}]}', ModelSpec())
    read = architecture(model, (4, 5))
    assert read.layers == (GruRecord(7, True), GruRecord(3, False))
    first, second = layer_shapes(read)
    assert first.parameters == {
        "input_weight": (5, 21),
        "state_weight": (7, 21),
        "input_bias": (21,),
        "state_bias": (21,),
    }
    assert second.parameters["input_weight"] == (7, 9)
    assert [first.output_shape, second.output_shape] == [(4, 7), (3,)]


@pytest.mark.parametrize(
    ("units", "row", "place", "reason"),
    [
        (0, (4, 5), "model.layers[0].gru.units", "INVALID_FIELD"),
        (2**32, (4, 5), "model.layers[0].gru.units", "INVALID_FIELD"),
        (3, (5,), "model.layers[0].gru", "SHAPES_DO_NOT_MEET"),
        (3, (4, 5, 6), "model.layers[0].gru", "SHAPES_DO_NOT_MEET"),
        (65536, (4, 5), "model.layers[0].gru", "MODEL_TOO_LARGE"),
    ],
)
def test_what_cannot_be_is_refused(units: int, row: tuple[int, ...], place: str, reason: str) -> None:
    with pytest.raises(UserError) as raised:
        layer_shapes(Architecture((GruRecord(units, False),), row))
    assert (raised.value.violations[0].place, raised.value.violations[0].reason) == (place, reason)
