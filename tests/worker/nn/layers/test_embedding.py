"""The embedding: rows of the table, their gradients in order, indices that are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.contract.errors import UserError
from lockstep.v1.model_pb2 import Embedding, Layer, ModelSpec
from tests.worker.nn.allocations import peak_bytes
from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from worker.nn.parameters import Array
from worker.nn.shapes import layer_shapes
from worker.specs import Architecture, EmbeddingRecord, architecture


def indices(seed: int, vocabulary: int, shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(seed).integers(0, vocabulary, shape).astype(np.float64)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_the_gradient(shards: int, rows: int, row: list[int], data: st.DataObject) -> None:
    vocabulary, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    x = indices(1, vocabulary, (shards, rows, *row))
    assert worst_error(EmbeddingRecord(vocabulary, width), x, check_input=False) < 1e-6


def test_a_stack_is_a_loop() -> None:
    x = indices(2, 40, (4, 5, 70))
    stack_is_loop(EmbeddingRecord(40, 33), x)


def test_it_is_the_formula() -> None:
    x = indices(3, 7, (2, 3, 4, 5))
    bench = LayerBench(EmbeddingRecord(7, 6), (4, 5))
    assert (bench.forward(x) == bench.parameters["weight"][x.astype(int)]).all()
    assert (bench.backward(np.ones((2, 3, 4, 5, 6))) == 0).all()


@pytest.mark.parametrize("width", [1, 3, 20_000])
def test_the_gradient_is_added_in_the_order_of_the_positions(width: int) -> None:
    rng = np.random.default_rng(4)
    x = indices(4, 3, (2, 4, 5))
    dy = rng.standard_normal((2, 4, 5, width)).astype(np.float32)
    bench = LayerBench(EmbeddingRecord(5, width), (5,), rows=4, dtype=np.float32)
    bench.forward(x)
    bench.backward(dy)
    want = np.zeros((2, 5, width), np.float32)
    for shard in range(2):
        for index, row in zip(x[shard].astype(int).ravel(), dy[shard].reshape(20, width), strict=True):
            want[shard, index] = want[shard, index] + row
    assert bench.gradients["weight"].tobytes() == want.tobytes()


@pytest.mark.parametrize("value", [-1, 7, 2.5, -0.5, 1e30, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_no_index_is_refused(value: float, dtype: type) -> None:
    bench = LayerBench(EmbeddingRecord(7, 2), (4,), dtype=dtype)
    x = np.zeros((2, 3, 4))
    x[1, 2, 3] = value
    with pytest.raises(UserError, match=r"layers\[0\]\.embedding: got the index") as raised:
        bench.forward(x)
    assert raised.value.reason == "INDEX_OUT_OF_RANGE"
    assert f"{float(np.asarray(value, dtype)):.9g}" in str(raised.value)
    x[1, 2, 3] = 6
    assert np.isfinite(bench.forward(x)).all()


def test_the_last_of_the_largest_vocabulary_is_found() -> None:
    bench = LayerBench(EmbeddingRecord(1 << 24, 1), (1,), shards=1, rows=1, dtype=np.float32, training=False)
    assert bench.forward(np.full((1, 1, 1), (1 << 24) - 1)).item() == bench.parameters["weight"][-1, 0]


@pytest.mark.parametrize(
    ("record", "place"),
    [
        (EmbeddingRecord(0, 1), "vocabulary"),
        (EmbeddingRecord(2**32, 1), "vocabulary"),
        (EmbeddingRecord(1, 0), "width"),
        (EmbeddingRecord(1, 2**32), "width"),
    ],
)
def test_absurd_sizes_are_refused(record: EmbeddingRecord, place: str) -> None:
    with pytest.raises(UserError) as raised:
        layer_shapes(Architecture((record,), (3,)))
    assert [(v.place, v.reason) for v in raised.value.violations][:1] == [
        (f"model.layers[0].embedding.{place}", "INVALID_FIELD")
    ]


def test_nothing_is_allocated() -> None:
    bench = LayerBench(EmbeddingRecord(50, 32), (40,), rows=20, dtype=np.float32)
    bench.x[...] = indices(5, 50, bench.x.shape)

    def both_passes() -> None:
        bench.layer.forward(bench.x, None)
        bench.layer.backward(bench.dy)

    both_passes()
    assert peak_bytes(both_passes) < 8192


def test_it_is_read() -> None:
    model = ModelSpec(layers=[Layer(embedding=Embedding(vocabulary=9, width=4))])
    assert architecture(model, (3,)).layers == (EmbeddingRecord(9, 4),)
