"""The affine map over the last axis of rows with several axes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from worker.nn.layers import PositionwiseDense
from worker.specs import DenseRecord, InitializerRecord


def dense(units: int, bias: bool = True) -> DenseRecord:
    return DenseRecord(units, bias, InitializerRecord("glorot_uniform"))


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.lists(st.integers(1, 4), min_size=2, max_size=3), st.integers(1, 4), st.booleans()
)
def test_the_gradient(shards: int, rows: int, row: list[int], units: int, bias: bool) -> None:
    x = np.random.default_rng(1).standard_normal((shards, rows, *row))
    assert worst_error(dense(units, bias), x) < 1e-6


def test_a_stack_is_a_loop() -> None:
    stack_is_loop(dense(9), np.random.default_rng(2).standard_normal((4, 5, 7, 33)))


def test_it_is_the_formula() -> None:
    x = np.random.default_rng(3).standard_normal((2, 3, 4, 5))
    bench = LayerBench(dense(6), (4, 5))
    assert isinstance(bench.layer, PositionwiseDense)
    want = x @ bench.parameters["weight"] + bench.parameters["bias"]
    assert bench.forward(x) == pytest.approx(want, rel=1e-12)
