"""Attention: gradient, formula, what is not seen, shards, blocks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.contract.errors import UserError
from lockstep.v1.model_pb2 import Attention, Layer, ModelSpec
from tests.worker.nn import layer_bench
from tests.worker.nn.allocations import peak_bytes
from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from tests.worker.nn.networks import CROSS_ENTROPY
from worker.nn.gradient_check import check_gradients
from worker.nn.layers import attention as module
from worker.nn.model import Model, Stack
from worker.nn.parameters import Array
from worker.nn.shapes import Role, layer_shapes
from worker.specs import (
    Architecture,
    AttentionRecord,
    DenseRecord,
    EmbeddingRecord,
    FlattenRecord,
    GeluRecord,
    InitializerRecord,
    LayerRecord,
    PositionsRecord,
    ReshapeRecord,
    ResidualRecord,
    architecture,
)

CAUSAL = pytest.mark.parametrize("causal", [False, True])


class Padded(LayerBench):
    """A bench whose layer does not see keys of which `hidden` (S, R, L) is true; a shard alone takes the first shard's."""

    hidden: Any

    def forward(self, x: Array) -> Array:
        padding = self.record.padding_index
        self.layer.look(np.where(self.hidden[: self.shards, : self.rows], padding, padding + 1).astype(self.dtype))
        return super().forward(x)


def formula(bench: LayerBench, x: Array, hidden: Any = None) -> Array:
    """Each query of each head of each row by itself."""
    heads, causal = bench.record.heads, bench.record.causal
    p = bench.parameters
    shards, rows, length, width = x.shape
    size = width // heads
    context = np.zeros_like(x)
    for s, r, h, query in np.ndindex(shards, rows, heads, length):
        q, k, v = np.split(x[s, r] @ p["projection"] + p["projection_bias"], 3, axis=1)
        own = slice(h * size, (h + 1) * size)
        seen = [j for j in range(length) if not (causal and j > query) and not (hidden is not None and hidden[s, r, j])]
        weights = [math.exp(float(q[query, own] @ k[j, own]) / math.sqrt(size)) for j in seen]
        for j, weight in zip(seen, weights, strict=True):
            context[s, r, query, own] += weight / math.fsum(weights) * v[j, own]
    return context @ p["output"] + p["output_bias"]


@settings(max_examples=10, deadline=None)
@given(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 4)), st.integers(1, 3), st.integers(1, 2), st.booleans())
def test_the_gradient(shape: tuple[int, int, int], heads: int, size: int, causal: bool) -> None:
    x = np.random.default_rng(1).standard_normal((*shape, heads * size))
    assert worst_error(AttentionRecord(heads, causal, None), x) < 1e-6


def hide(monkeypatch: pytest.MonkeyPatch, hidden: Any) -> None:
    monkeypatch.setattr(Padded, "hidden", hidden, raising=False)
    monkeypatch.setattr(layer_bench, "LayerBench", Padded)


@CAUSAL
def test_the_gradient_with_padding(monkeypatch: pytest.MonkeyPatch, causal: bool) -> None:
    rng = np.random.default_rng(2)
    hidden: Any = rng.random((2, 3, 4)) < 0.4
    hidden[1, 1] = True
    hidden[0, 0] = [True, False, False, False]
    hide(monkeypatch, hidden)
    assert worst_error(AttentionRecord(2, causal, 0), rng.standard_normal((2, 3, 4, 4))) < 1e-6


@CAUSAL
@pytest.mark.parametrize("shape", [(4, 5, 7, 12), (3, 2, 1, 4), (2, 1, 300, 8), (2, 40, 17, 4), (2, 3, 5, 4)])
def test_a_stack_is_a_loop(causal: bool, shape: tuple[int, ...]) -> None:
    stack_is_loop(AttentionRecord(4, causal, None), np.random.default_rng(3).standard_normal(shape))


@CAUSAL
def test_a_stack_is_a_loop_with_padding(monkeypatch: pytest.MonkeyPatch, causal: bool) -> None:
    rng = np.random.default_rng(4)
    hidden: Any = np.repeat(rng.random((1, 5, 40)) < 0.3, 3, axis=0)
    hidden[:, 2] = True
    hide(monkeypatch, hidden)
    stack_is_loop(AttentionRecord(4, causal, 0), rng.standard_normal((3, 5, 40, 16)))


@CAUSAL
@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_formula(causal: bool, training: bool) -> None:
    x = np.random.default_rng(5).standard_normal((2, 3, 5, 6))
    bench = LayerBench(AttentionRecord(3, causal, None), (5, 6), training=training)
    assert bench.forward(x) == pytest.approx(formula(bench, x), rel=1e-9, abs=1e-12)


@CAUSAL
def test_padding_is_the_formula_and_who_sees_nothing_gets_zeros(causal: bool) -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, 3, 5, 6))
    hidden: Any = rng.random((2, 3, 5)) < 0.4
    hidden[1, 2], hidden[0, 0, 0] = True, True
    bench = Padded(AttentionRecord(3, causal, 9), (5, 6))
    bench.hidden = hidden
    y = bench.forward(x)
    assert y == pytest.approx(formula(bench, x, hidden), rel=1e-9, abs=1e-12)
    assert (y[1, 2] == bench.parameters["output_bias"]).all()


@CAUSAL
def test_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch, causal: bool) -> None:
    rng = np.random.default_rng(7)
    x, dy = (rng.standard_normal((2, 3, 10, 8)).astype(np.float32) for _ in range(2))
    results = []
    # All rows at once, a row at a time, and two heads of the four at a time.
    for block in (1 << 16, 400, 200):
        monkeypatch.setattr(module, "BLOCK_FLOATS", block)
        bench = LayerBench(AttentionRecord(4, causal, None), (10, 8), dtype=np.float32)
        results.append(
            [bench.forward(x).tobytes(), bench.backward(dy).tobytes(), *(g.tobytes() for g in bench.gradients.values())]
        )
    assert results[0] == results[1] == results[2]


@CAUSAL
def test_evaluation_gives_the_same_values(causal: bool) -> None:
    x = np.random.default_rng(9).standard_normal((1, 60, 40, 8)).astype(np.float32)
    ways = [
        LayerBench(AttentionRecord(2, causal, None), (40, 8), shards=1, rows=60, dtype=np.float32, training=training)
        for training in (True, False)
    ]
    assert ways[0].forward(x).tobytes() == ways[1].forward(x).tobytes()


def test_large_scores_stay_finite_and_nan_stays_nan() -> None:
    x = 1e4 * np.random.default_rng(10).standard_normal((1, 2, 5, 4)).astype(np.float32)
    bench = LayerBench(AttentionRecord(2, True, None), (5, 4), shards=1, rows=2, dtype=np.float32)
    assert np.isfinite(bench.forward(x)).all()
    assert np.isfinite(bench.backward(np.ones((1, 2, 5, 4)))).all()
    x[0, 1, 3, 2] = np.nan
    with np.errstate(all="ignore"):
        y = bench.forward(x)
    assert np.isfinite(y[0, 0]).all()
    assert np.isnan(y[0, 1, 3:]).all()


def test_nothing_is_allocated() -> None:
    bench = LayerBench(AttentionRecord(4, True, 0), (40, 32), rows=20, dtype=np.float32)
    bench.x[...] = np.random.default_rng(11).standard_normal(bench.x.shape)
    indices = np.ones((2, 20, 40), np.float32)

    def both_passes() -> None:
        bench.layer.look(indices)
        bench.layer.forward(bench.x, None)
        bench.layer.backward(bench.dy)

    both_passes()
    assert peak_bytes(both_passes) < 8192


@pytest.mark.parametrize(
    ("heads", "row", "place", "reason"),
    [
        (3, (5, 8), ".heads", "INVALID_FIELD"),
        (0, (5, 8), ".heads", "INVALID_FIELD"),
        (2**32 - 1, (5, 8), ".heads", "INVALID_FIELD"),
        (2, (8,), "", "SHAPES_DO_NOT_MEET"),
        (2, (5, 8, 8), "", "SHAPES_DO_NOT_MEET"),
        (1, (2**15, 1), ".heads", "MODEL_TOO_LARGE"),
    ],
)
def test_what_does_not_fit_is_refused(heads: int, row: tuple[int, ...], place: str, reason: str) -> None:
    with pytest.raises(UserError) as raised:
        layer_shapes(Architecture((AttentionRecord(heads, False, None),), row))
    assert [(v.place, v.reason) for v in raised.value.violations] == [(f"model.layers[0].attention{place}", reason)]


def test_biases_do_not_decay() -> None:
    (layer,) = layer_shapes(Architecture((AttentionRecord(2, False, None),), (3, 4)))
    assert {name: (tensor.shape, tensor.role) for name, tensor in layer.tensors.items()} == {
        "projection": ((4, 12), Role.WEIGHT),
        "projection_bias": ((12,), Role.OFFSET),
        "output": ((4, 4), Role.WEIGHT),
        "output_bias": ((4,), Role.OFFSET),
    }


def test_it_is_read() -> None:
    model = ModelSpec(layers=[Layer(attention=Attention(heads=2, causal=True))])
    assert architecture(model, (3, 4)).layers == (AttentionRecord(2, True, None),)
    model.layers[0].attention.padding_index = 0
    assert architecture(model, (3, 4)).layers == (AttentionRecord(2, True, 0),)


@pytest.mark.parametrize("inputs", [(3, 4), (12,)])
def test_padding_without_indices_at_the_input_is_refused(inputs: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="padding is looked for in the network's input; it has rows of shape") as raised:
        layer_shapes(Architecture((ReshapeRecord((3, 4)), AttentionRecord(2, False, 0)), inputs))
    assert [(v.place, v.reason) for v in raised.value.violations] == [
        ("model.layers[1].attention.padding_index", "INVALID_FIELD")
    ]


def transformer(length: int, vocabulary: int, width: int, classes: int) -> Architecture:
    """Two blocks of attention and a positionwise network, without normalization."""
    glorot = InitializerRecord("glorot_uniform")
    layers: list[LayerRecord] = [EmbeddingRecord(vocabulary, width), PositionsRecord(True)]
    for causal in (True, False):
        layers.append(ResidualRecord((AttentionRecord(2, causal, None),), ()))
        layers.append(
            ResidualRecord((DenseRecord(2 * width, True, glorot), GeluRecord(True), DenseRecord(width, True, glorot)), ())
        )
    layers += [PositionsRecord(False), FlattenRecord(), DenseRecord(classes, True, glorot)]
    return Architecture(tuple(layers), (length,))


def sentences(seed: int, shards: int, rows: int, length: int, vocabulary: int) -> Stack:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, vocabulary, (shards, rows, length)).astype(np.float32)
    return x, rng.integers(0, 3, (shards, rows))


def test_a_transformer_has_the_gradient() -> None:
    stacks = [sentences(1, 2, 3, 4, 6), sentences(2, 1, 2, 4, 6)]
    stacks64 = [(x.astype(np.float64), y) for x, y in stacks]
    for check in check_gradients(transformer(4, 6, 4, 3), CROSS_ENTROPY, stacks64, combine=((0, 2), (2, 3))):
        assert check.worst_relative_error < 1e-6, check


def test_a_transformer_in_one_stack_or_alone_has_one_gradient_and_allocates_nothing() -> None:
    net, alone = (Model(transformer(16, 30, 32, 3), CROSS_ENTROPY) for _ in range(2))
    x, y = sentences(3, 4, 5, 16, 30)
    leaves = tuple((shard, shard + 1) for shard in range(4))
    for _ in range(3):
        net.loss_and_gradient([(x, y)], leaves)
    for shard in range(4):
        alone.loss_and_gradient([(x[shard : shard + 1].copy(), y[shard : shard + 1].copy())])
        assert alone.gradients[0].tobytes() == net.gradients[shard].tobytes()
    assert peak_bytes(lambda: net.loss_and_gradient([(x, y)], leaves)) < 8192
