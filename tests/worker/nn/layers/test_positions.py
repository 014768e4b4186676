"""Positions: learned and sinusoidal."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.contract.errors import UserError
from lockstep.v1.model_pb2 import Layer, ModelSpec, Positions
from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from worker.nn.shapes import Role, layer_shapes
from worker.specs import Architecture, PositionsRecord, architecture

BOTH = pytest.mark.parametrize("learned", [False, True])


@settings(max_examples=15, deadline=None)
@given(st.tuples(*(st.integers(1, 4) for _ in range(4))), st.booleans(), st.booleans())
def test_the_gradient(shape: tuple[int, int, int, int], learned: bool, may_overwrite: bool) -> None:
    x = np.random.default_rng(1).standard_normal(shape)
    assert worst_error(PositionsRecord(learned), x, may_overwrite=may_overwrite) < 1e-6


@BOTH
@pytest.mark.parametrize("shape", [(4, 5, 7, 33), (3, 300, 1, 1), (3, 1, 5, 6), (1, 9, 64, 128)])
def test_a_stack_is_a_loop(learned: bool, shape: tuple[int, ...]) -> None:
    stack_is_loop(PositionsRecord(learned), np.random.default_rng(2).standard_normal(shape))


def test_learned_is_the_formula() -> None:
    x = np.random.default_rng(3).standard_normal((2, 3, 4, 5))
    bench = LayerBench(PositionsRecord(True), (4, 5))
    assert (bench.forward(x) == x + bench.parameters["weight"]).all()
    assert layer_shapes(Architecture((PositionsRecord(True),), (4, 5)))[0].tensors["weight"].role is Role.OFFSET


@pytest.mark.parametrize("width", [1, 5, 8])
def test_sinusoidal_is_the_formula(width: int) -> None:
    y = LayerBench(PositionsRecord(False), (50, width)).forward(np.zeros((2, 3, 50, width)))
    for place in range(50):
        for unit in range(width):
            angle = place / 10_000 ** (2 * (unit // 2) / width)
            want = math.cos(angle) if unit % 2 else math.sin(angle)
            assert y[:, :, place, unit] == pytest.approx(want, abs=1e-12)


@BOTH
@pytest.mark.parametrize("row", [(3,), (2, 3, 4)])
def test_other_rows_are_refused(learned: bool, row: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as raised:
        layer_shapes(Architecture((PositionsRecord(learned),), row))
    assert [(v.place, v.reason) for v in raised.value.violations] == [("model.layers[0].positions", "SHAPES_DO_NOT_MEET")]


@pytest.mark.parametrize(
    ("form", "learned"), [(Positions.FORM_UNSPECIFIED, True), (Positions.LEARNED, True), (Positions.SINUSOIDAL, False)]
)
def test_it_is_read(form: Positions.Form.ValueType, learned: bool) -> None:
    model = ModelSpec(layers=[Layer(positions=Positions(form=form))])
    assert architecture(model, (3, 4)).layers == (PositionsRecord(learned),)
