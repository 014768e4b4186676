"""The gated recurrent unit: its formula and its message; what it shares with LSTM is in test_recurrent."""

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
from worker.specs import GruRecord, architecture


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
