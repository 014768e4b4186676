"""Softmax: formula, derivative, sums of one, stability far out, shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.nn.allocations import peak_bytes
from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from worker.nn.parameters import Array
from worker.specs import SoftmaxRecord


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.booleans())
def test_the_gradient(shards: int, rows: int, row: list[int], may_overwrite: bool) -> None:
    x = np.random.default_rng(1).standard_normal((shards, rows, *row))
    assert worst_error(SoftmaxRecord(), x, may_overwrite=may_overwrite) < 1e-6


@pytest.mark.parametrize("row", [(7,), (3, 7), (2, 3, 7), (70_000,), (2, 70_000)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_it_is_the_formula(row: tuple[int, ...], dtype: type) -> None:
    # Rounding of x - m, exp and the quotient; the sum down a row of one axis, number after number, adds up to half a unit each.
    rounding = float(np.finfo(dtype).eps)
    bound = 30 * rounding + (row[0] * rounding / 2 if len(row) == 1 else 0)
    x: Array = np.random.default_rng(2).uniform(-8, 8, (2, 3, *row)).astype(dtype)
    y = LayerBench(SoftmaxRecord(), row, dtype=dtype).forward(x)
    e = np.exp(x.astype(np.float64))
    want = e / e.sum(axis=-1, keepdims=True)
    assert float(np.abs(y / want - 1).max()) < bound
    assert y.sum(axis=-1, dtype=np.float64) == pytest.approx(1, abs=bound)


@pytest.mark.parametrize("row", [(4,), (3, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_out_and_nan(row: tuple[int, ...], dtype: type) -> None:
    x: Array = np.zeros((1, 3, *row), dtype)
    x[0, 0] = [1e4, -1e4, 0, 1e4]
    x[0, 1] = [-1e4, -1e4, -1e4, -1e4]
    x[0, 2, ..., 1] = np.nan
    bench = LayerBench(SoftmaxRecord(), row, shards=1, rows=3, dtype=dtype)
    y, dx = bench.forward(x), bench.backward(np.ones((1, 3, *row)))
    assert (y[0, 0] == [0.5, 0, 0, 0.5]).all()
    assert (y[0, 1] == 0.25).all()
    assert np.isnan(y[0, 2]).all()
    assert float(np.abs(dx[0, :2]).max()) < 1e-6


@pytest.mark.parametrize("row", [(1,), (7,), (300,), (5, 1), (1, 9), (41, 37)])
@pytest.mark.parametrize("rows", [1, 2, 67])
def test_a_stack_is_a_loop(row: tuple[int, ...], rows: int) -> None:
    stack_is_loop(SoftmaxRecord(), np.random.default_rng(3).standard_normal((3, rows, *row)))


@pytest.mark.parametrize("row", [(30,), (20, 30)])
def test_evaluation_gives_the_same_values(row: tuple[int, ...]) -> None:
    x = np.random.default_rng(4).standard_normal((1, 200, *row)).astype(np.float32)
    ways = [LayerBench(SoftmaxRecord(), row, shards=1, rows=200, dtype=np.float32, training=way) for way in (True, False)]
    assert ways[0].forward(x).tobytes() == ways[1].forward(x).tobytes()


@pytest.mark.parametrize("row", [(500,), (80, 500)])
def test_nothing_is_allocated_in_a_pass(row: tuple[int, ...]) -> None:
    bench = LayerBench(SoftmaxRecord(), row, rows=20, dtype=np.float32)
    bench.x.fill(1)
    bench.dy.fill(1)

    def both_passes() -> None:
        bench.layer.forward(bench.x, None)
        bench.layer.backward(bench.dy)

    both_passes()
    assert peak_bytes(both_passes) < 8 << 10
