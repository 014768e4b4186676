"""The elementwise layers: formula, derivative, stability far out, shards."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from worker.nn.parameters import Array
from worker.specs import (
    EluRecord,
    GeluRecord,
    LayerRecord,
    LeakyReluRecord,
    ReluRecord,
    SigmoidRecord,
    SiluRecord,
    SoftplusRecord,
    TanhRecord,
)


def by_tanh(x: float) -> float:
    return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


FORMULAS: list[tuple[LayerRecord, Callable[[float], float]]] = [
    (ReluRecord(), lambda x: max(x, 0)),
    (LeakyReluRecord(0.1), lambda x: x if x > 0 else 0.1 * x),
    (EluRecord(1.0), lambda x: x if x > 0 else math.expm1(x)),
    (EluRecord(0.3), lambda x: x if x > 0 else 0.3 * math.expm1(x)),
    (SiluRecord(), lambda x: x / (1 + math.exp(-x))),
    (GeluRecord(True), lambda x: x / 2 * math.erfc(-x / math.sqrt(2))),
    (GeluRecord(False), by_tanh),
    (SigmoidRecord(), lambda x: 1 / (1 + math.exp(-x))),
    (TanhRecord(), math.tanh),
    (SoftplusRecord(), lambda x: math.log1p(math.exp(x))),
]
RECORDS = [record for record, _ in FORMULAS]


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_the_derivative(record: LayerRecord) -> None:
    x = np.random.default_rng(1).uniform(-4, 4, (2, 3, 4, 5))
    assert worst_error(record, x) < 1e-6


@pytest.mark.parametrize(("record", "formula"), FORMULAS, ids=[str(record) for record in RECORDS])
@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 4e-15), (np.float32, 2e-6)])
def test_it_is_the_formula(record: LayerRecord, formula: Callable[[float], float], dtype: type, bound: float) -> None:
    x: Array = np.linspace(-12, 12, 20_001).astype(dtype)
    y = LayerBench(record, (20_001,), shards=1, rows=1, dtype=dtype).forward(x.reshape(1, 1, -1)).reshape(-1)
    want = np.array([formula(float(value)) for value in x])
    assert float(np.abs(y - want).max()) < bound


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_far_out_and_nan(record: LayerRecord) -> None:
    bench = LayerBench(record, (5,), shards=1, rows=1, dtype=np.float32)
    with np.errstate(all="ignore"):
        y = bench.forward(np.array([-1e4, 0, 1e4, np.nan, -30], np.float32).reshape(1, 1, 5)).reshape(-1)
        dx = bench.backward(np.ones((1, 1, 5))).reshape(-1)
    assert np.isfinite(y[[0, 1, 2, 4]]).all()
    assert np.isfinite(dx[[0, 1, 2, 4]]).all()
    assert np.isnan(y[3])


@pytest.mark.parametrize("record", RECORDS, ids=str)
@pytest.mark.parametrize("may_overwrite", [False, True])
def test_a_stack_is_a_loop(record: LayerRecord, may_overwrite: bool) -> None:
    stack_is_loop(record, np.random.default_rng(2).standard_normal((3, 7, 41, 23)), may_overwrite=may_overwrite)


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_evaluation_gives_the_same_values(record: LayerRecord) -> None:
    x = np.random.default_rng(3).standard_normal((1, 300, 70)).astype(np.float32)
    ways = [LayerBench(record, (70,), shards=1, rows=300, dtype=np.float32, training=training) for training in (True, False)]
    assert ways[0].forward(x).tobytes() == ways[1].forward(x).tobytes()


@pytest.mark.parametrize("may_overwrite", [False, True])
def test_a_large_rectifier_goes_piece_by_piece(monkeypatch: pytest.MonkeyPatch, may_overwrite: bool) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 4))
    whole = LayerBench(ReluRecord(), (5, 4), may_overwrite=may_overwrite)
    monkeypatch.setattr("worker.nn.layers.relu.PIECE", 7)
    pieces = LayerBench(ReluRecord(), (5, 4), may_overwrite=may_overwrite)
    assert pieces.forward(x).tobytes() == whole.forward(x).tobytes() == np.maximum(x, 0).tobytes()
    assert pieces.backward(x[::-1]).tobytes() == whole.backward(x[::-1]).tobytes() == np.where(x > 0, x[::-1], 0).tobytes()
