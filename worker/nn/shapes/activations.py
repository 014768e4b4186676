"""Shapes of the elementwise layers, of softmax and of dropout: what goes in comes out."""

from __future__ import annotations

from typing import Any

from worker.nn.shapes.shape import Outcome, Refusals, Rule, Shape
from worker.specs import LayerRecord, ReluRecord


def _same(record: LayerRecord, shape: Shape, refusals: Refusals) -> Outcome:
    return Outcome(shape)


RULES: dict[type[Any], Rule] = {ReluRecord: _same}
