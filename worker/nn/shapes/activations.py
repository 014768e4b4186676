"""Shapes of the elementwise layers, dropout among them, and of softmax: what goes in comes out."""

from __future__ import annotations

from typing import Any

from worker.nn.shapes.shape import Outcome, Refusals, Rule, Shape
from worker.specs import (
    DropoutRecord,
    EluRecord,
    GeluRecord,
    LayerRecord,
    LeakyReluRecord,
    ReluRecord,
    SigmoidRecord,
    SiluRecord,
    SoftmaxRecord,
    SoftplusRecord,
    TanhRecord,
)


def _same(record: LayerRecord, shape: Shape, refusals: Refusals) -> Outcome:
    return Outcome(shape)


RULES: dict[type[Any], Rule] = dict.fromkeys(
    (
        ReluRecord,
        LeakyReluRecord,
        EluRecord,
        SiluRecord,
        GeluRecord,
        SigmoidRecord,
        TanhRecord,
        SoftplusRecord,
        SoftmaxRecord,
        DropoutRecord,
    ),
    _same,
)
