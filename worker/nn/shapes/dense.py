"""Shapes of dense, flatten and reshape."""

from __future__ import annotations

import math
from typing import Any

from worker.nn.shapes.shape import ZERO, Initial, Outcome, Refusals, Role, Rule, Shape, TensorShape
from worker.specs import DenseRecord, FlattenRecord, ReshapeRecord

MAX_UNITS = 1 << 20

# Most axes of a row that reshape gives, and the most numbers along one.
MAX_AXES = 4
MAX_AXIS = 1 << 24


def _dense(record: DenseRecord, shape: Shape, refusals: Refusals) -> Outcome:
    if not 1 <= record.units <= MAX_UNITS:
        refusals.field("units", record.units, f"it must be at least 1 and at most {MAX_UNITS}")
    inputs, units = shape[-1], record.units
    initial = Initial(record.initializer.kind, inputs, units, record.initializer.value)
    if len(shape) == 1:
        # Rows are columns inside: the weights stand on their side.
        weight = TensorShape((inputs, units), (units, inputs), (1, 0), initial)
    else:
        weight = TensorShape.plain((inputs, units), initial)
    tensors = {"weight": weight}
    if record.bias:
        tensors["bias"] = TensorShape.plain((units,), ZERO, Role.OFFSET)
    return Outcome((*shape[:-1], units), tensors)


def _flatten(record: FlattenRecord, shape: Shape, refusals: Refusals) -> Outcome:
    return Outcome((math.prod(shape),))


def _reshape(record: ReshapeRecord, shape: Shape, refusals: Refusals) -> Outcome:
    new = record.shape
    if not 1 <= len(new) <= MAX_AXES:
        refusals.field("shape", f"{len(new)} axes", f"it must have at least 1 and at most {MAX_AXES}")
        return Outcome(shape)
    wrong = [index for index, size in enumerate(new) if not 1 <= size <= MAX_AXIS]
    for index in wrong:
        refusals.field(f"shape[{index}]", new[index], f"it must be at least 1 and at most {MAX_AXIS}")
    if wrong:
        return Outcome(shape)
    if math.prod(new) != math.prod(shape):
        remedy = f"they have {math.prod(shape)} numbers and shape {new} has {math.prod(new)}; give a shape of as many"
        refusals.shape(shape, remedy)
        return Outcome(shape)
    return Outcome(new)


RULES: dict[type[Any], Rule] = {DenseRecord: _dense, FlattenRecord: _flatten, ReshapeRecord: _reshape}
