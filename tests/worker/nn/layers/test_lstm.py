"""Long short-term memory: its formula and its message; what it shares with GRU is in test_recurrent."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.json_format import Parse
from hypothesis import given
from hypothesis import strategies as st

from lockstep.v1.model_pb2 import ModelSpec
from tests.worker.nn.layer_bench import LayerBench
from tests.worker.nn.layers.test_recurrent import FEW, SMALL, numbers
from worker.nn.parameters import Array
from worker.nn.shapes import layer_shapes
from worker.specs import LstmRecord, architecture


def state_after(x: Array, weight: Array, bias: Array) -> list[Array]:
    """The state at each position of one row x (L, X); weight (X + H, 4H) and bias are public tensors."""
    H = len(bias) // 4
    h, c = np.zeros(H), np.zeros(H)
    states: list[Array] = []
    for x_l in x:
        i, f, o, g = np.split(np.concatenate([x_l, h]) @ weight + bias, 4)
        i, f, o = (1 / (1 + np.exp(-a)) for a in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        states.append(h)
    return states


@FEW
@given(SMALL, SMALL, st.integers(1, 6), SMALL, st.integers(1, 5), st.booleans(), st.booleans())
def test_it_is_the_formula(shards: int, rows: int, length: int, width: int, units: int, sequence: bool, training: bool) -> None:
    x = numbers(shards, rows, length, width)
    bench = LayerBench(LstmRecord(units, sequence), (length, width), shards=shards, rows=rows, training=training)
    y = bench.forward(x)
    assert y.shape == (shards, rows, *([length] if sequence else []), units)
    for shard in range(shards):
        for row in range(rows):
            states = state_after(x[shard, row], bench.parameters["weight"].T, bench.parameters["bias"])
            assert y[shard, row] == pytest.approx(np.array(states if sequence else states[-1]), rel=1e-12, abs=1e-14)


def test_its_message_is_read() -> None:
    model = Parse('{"layers": [{"lstm": {"units": 7, "sequence": true}}, {"lstm": {"units": 3}}]}', ModelSpec())
    read = architecture(model, (4, 5))
    assert read.layers == (LstmRecord(7, True), LstmRecord(3, False))
    first, second = layer_shapes(read)
    assert first.parameters == {"weight": (12, 28), "bias": (28,)}
    assert second.parameters == {"weight": (10, 12), "bias": (12,)}
    assert [first.output_shape, second.output_shape] == [(4, 7), (3,)]
