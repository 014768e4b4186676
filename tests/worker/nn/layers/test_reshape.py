"""Reshape: C order of a row whatever the layout inside, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.contract.errors import UserError
from lockstep.v1.model_pb2 import Layer, ModelSpec, Reshape
from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from worker.nn.shapes import layer_shapes
from worker.specs import Architecture, DenseRecord, InitializerRecord, ReshapeRecord, architecture


@settings(max_examples=15, deadline=None)
@given(st.permutations([2, 3, 2]), st.sampled_from([(12,), (4, 3), (3, 4), (1, 12, 1), (2, 1, 3, 2)]))
def test_the_gradient_and_the_order(row: list[int], shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, *row))
    assert worst_error(ReshapeRecord(shape), x) < 1e-6
    y = LayerBench(ReshapeRecord(shape), tuple(row)).forward(x)
    assert (y == x.reshape(2, 3, *shape)).all()


def test_a_stack_is_a_loop() -> None:
    stack_is_loop(ReshapeRecord((6, 5)), np.random.default_rng(2).standard_normal((3, 4, 3, 10)))


def test_nothing_is_copied() -> None:
    bench = LayerBench(ReshapeRecord((6, 5)), (30,))
    assert np.shares_memory(bench.layer.y, bench.x)
    assert np.shares_memory(bench.dx, bench.dy)


def test_it_is_read() -> None:
    model = ModelSpec(layers=[Layer(reshape=Reshape(shape=[3, 4]))])
    assert architecture(model, (12,)).layers == (ReshapeRecord((3, 4)),)


@pytest.mark.parametrize(
    ("shape", "place", "reason"),
    [
        ((), "model.layers[0].reshape.shape", "INVALID_FIELD"),
        ((1, 1, 1, 1, 12), "model.layers[0].reshape.shape", "INVALID_FIELD"),
        ((12, 0), "model.layers[0].reshape.shape[1]", "INVALID_FIELD"),
        ((2**32, 2**32), "model.layers[0].reshape.shape[0]", "INVALID_FIELD"),
        ((3, 5), "model.layers[0].reshape", "SHAPES_DO_NOT_MEET"),
        ((2**24, 2**24, 2**24, 2**24), "model.layers[0].reshape", "SHAPES_DO_NOT_MEET"),
    ],
)
def test_what_is_refused(shape: tuple[int, ...], place: str, reason: str) -> None:
    behind = DenseRecord(2, True, InitializerRecord("zeros"))
    with pytest.raises(UserError) as raised:
        layer_shapes(Architecture((ReshapeRecord(shape), behind), (12,)))
    first = raised.value.violations[0]
    assert (first.place, first.reason) == (place, reason)
    assert len(raised.value.violations) == sum(size > 2**24 for size in shape) or len(raised.value.violations) == 1


def test_the_remedy_names_both_counts() -> None:
    with pytest.raises(UserError, match=r"rows of shape \(12,\); they have 12 numbers and shape \(3, 5\) has 15"):
        layer_shapes(Architecture((ReshapeRecord((3, 5)),), (12,)))
    assert math.prod(layer_shapes(Architecture((ReshapeRecord((3, 4)),), (12,)))[0].output_shape) == 12
