"""What LSTM and GRU have in common: one suite for both."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.contract.errors import UserError
from tests.worker.nn.allocations import peak_bytes
from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from tests.worker.nn.networks import CROSS_ENTROPY, draw_stack
from worker.nn.gradient_check import check_gradients
from worker.nn.model import Model
from worker.nn.parameters import Array
from worker.nn.shapes import layer_shapes
from worker.specs import Architecture, DenseRecord, GruRecord, InitializerRecord, LayerRecord, LstmRecord

Kind: TypeAlias = type[LstmRecord] | type[GruRecord]

FEW = settings(max_examples=24, deadline=None)
SMALL = st.integers(1, 3)
KINDS = st.sampled_from([LstmRecord, GruRecord])

DENSE = DenseRecord(4, True, InitializerRecord("glorot_uniform"))

both = pytest.mark.parametrize("kind", [LstmRecord, GruRecord], ids=["lstm", "gru"])
deep_or_not = pytest.mark.parametrize("deep", [False, True], ids=["alone", "deep"])


def network(kind: Kind, deep: bool) -> tuple[LayerRecord, ...]:
    """The layer first, where no input gradient is needed and x is a view; in a deep network also behind one that takes rows
    first."""
    return (kind(5, True), DENSE, kind(4, False), DENSE) if deep else (kind(5, False), DENSE)


def numbers(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape)


@FEW
@given(KINDS, SMALL, SMALL, SMALL, SMALL, SMALL, st.booleans())
def test_the_gradient(kind: Kind, shards: int, rows: int, length: int, width: int, units: int, sequence: bool) -> None:
    assert worst_error(kind(units, sequence), numbers(shards, rows, length, width)) < 1e-6


@FEW
@given(KINDS, st.integers(1, 5), st.integers(1, 9), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_a_stack_is_a_loop(kind: Kind, shards: int, rows: int, length: int, width: int, units: int, sequence: bool) -> None:
    stack_is_loop(kind(units, sequence), numbers(shards, rows, length, width))


@both
@pytest.mark.parametrize("sequence", [False, True])
def test_a_stack_in_several_groups_is_a_loop(kind: Kind, sequence: bool) -> None:
    # 70 units for 100 rows: two shards in a group, so that the last has one.
    stack_is_loop(kind(70, sequence), numbers(5, 100, 4, 33))


@both
@pytest.mark.parametrize("sequence", [False, True])
def test_long_sequences_stay_finite_and_passes_repeat(kind: Kind, sequence: bool) -> None:
    bench = LayerBench(kind(16, sequence), (64, 8), dtype=np.float32)
    x = 100 * numbers(2, 3, 64, 8)
    seen = []
    for _ in range(2):
        y = bench.forward(x)
        dx = bench.backward(np.ones_like(y))
        seen.append([a.tobytes() for a in (y, dx, *bench.gradients.values())])
        assert all(np.isfinite(a).all() for a in (y, dx, *bench.gradients.values()))
    assert seen[0] == seen[1]


@both
def test_evaluation_gives_the_bits_of_training(kind: Kind) -> None:
    x = numbers(2, 3, 7, 5)
    ways = [LayerBench(kind(6, True), (7, 5), dtype=np.float32, training=training) for training in (False, True)]
    assert ways[0].forward(x).tobytes() == ways[1].forward(x).tobytes()


@both
def test_x_may_be_a_strided_view(kind: Kind) -> None:
    x, bench = numbers(2, 3, 7, 5), LayerBench(kind(6, False), (7, 5))
    want = bench.forward(x)
    dy = np.moveaxis(numbers(*want.shape), 1, -1).copy()
    bench.dy[...] = dy
    dx = bench.layer.backward(bench.dy).copy()
    gradients = {name: gradient.copy() for name, gradient in bench.gradients.items()}
    assert np.moveaxis(bench.layer.forward(np.moveaxis(x, 1, -1), None), -1, 1) == pytest.approx(want)
    assert bench.layer.backward(bench.dy) == pytest.approx(dx)
    assert all(bench.gradients[name] == pytest.approx(gradient) for name, gradient in gradients.items())


@both
@deep_or_not
def test_the_chain_rule_in_a_network(kind: Kind, deep: bool) -> None:
    layers = network(kind, deep)
    rng = np.random.default_rng(0)
    stacks = [draw_stack(rng, s, r, (6, 3), 4, CROSS_ENTROPY, np.float64) for s, r in ((3, 4), (2, 3))]
    checks = check_gradients(Architecture(layers, (6, 3)), CROSS_ENTROPY, stacks, seed=2)
    assert {check.name: check.worst_relative_error for check in checks if check.worst_relative_error > 1e-6} == {}


@both
@pytest.mark.parametrize(("rows", "width", "units"), [(1, 1, 1), (1, 5, 3), (7, 1, 16), (9, 33, 20)])
def test_a_stack_is_a_loop_in_a_network(kind: Kind, rows: int, width: int, units: int) -> None:
    net = Architecture((kind(units, True), kind(units, False), DENSE), (3, width))
    x, y = draw_stack(np.random.default_rng(1), 4, rows, (3, width), 4, CROSS_ENTROPY)
    model, alone = Model(net, CROSS_ENTROPY, seed=3), Model(net, CROSS_ENTROPY, seed=3)
    model.loss_and_gradient([(x, y)], tuple((s, s + 1) for s in range(4)))
    for shard in range(4):
        alone.loss_and_gradient([(x[shard : shard + 1], y[shard : shard + 1])])
        assert alone.gradients[0].tobytes() == model.gradients[shard].tobytes()


@both
@deep_or_not
def test_a_step_allocates_nothing_after_the_first(kind: Kind, deep: bool) -> None:
    layers = network(kind, deep)
    stack = draw_stack(np.random.default_rng(1), 4, 50, (6, 3), 4, CROSS_ENTROPY)
    model = Model(Architecture(layers, (6, 3)), CROSS_ENTROPY)
    for _ in range(2):
        model.loss_and_gradient([stack])
    assert peak_bytes(lambda: model.loss_and_gradient([stack])) < 8192


@both
def test_nan_stays_nan(kind: Kind) -> None:
    x = numbers(2, 3, 4, 5)
    x[1, 2, 0, 3] = np.nan
    broken = np.isnan(LayerBench(kind(6, False), (4, 5)).forward(x))
    assert broken[1, 2].all()
    assert broken.sum() == 6


@both
def test_a_wrong_input_is_refused(kind: Kind) -> None:
    with pytest.raises(UserError, match=rf"layers\[0\]\.{kind.kind}: got an input of shape \(2, 4, 5, 2\)"):
        LayerBench(kind(6, False), (4, 5)).layer.forward(np.zeros((2, 4, 5, 2)), None)


@both
@pytest.mark.parametrize(
    ("units", "row", "field", "reason"),
    [
        (0, (4, 5), ".units", "INVALID_FIELD"),
        (2**32, (4, 5), ".units", "INVALID_FIELD"),
        (3, (5,), "", "SHAPES_DO_NOT_MEET"),
        (3, (4, 5, 6), "", "SHAPES_DO_NOT_MEET"),
        (65536, (4, 5), "", "MODEL_TOO_LARGE"),
    ],
)
def test_what_cannot_be_is_refused(kind: Kind, units: int, row: tuple[int, ...], field: str, reason: str) -> None:
    with pytest.raises(UserError) as raised:
        layer_shapes(Architecture((kind(units, False),), row))
    violation = raised.value.violations[0]
    assert (violation.place, violation.reason) == (f"model.layers[0].{kind.kind}{field}", reason)
