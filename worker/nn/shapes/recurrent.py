"""Shapes of LSTM and GRU."""

from __future__ import annotations

from typing import Any

from worker.nn.shapes.shape import ZERO, Initial, Outcome, Refusals, Role, Rule, Shape, TensorShape
from worker.specs import GruRecord, LstmRecord

MAX_UNITS = 1 << 16


def _weight(inputs: int, units: int, gates: int) -> TensorShape:
    """(inputs, gates * units) in public, on its side inside: rows are columns there. Each gate is drawn as if by itself."""
    outputs = gates * units
    return TensorShape((inputs, outputs), (outputs, inputs), (1, 0), Initial("glorot_uniform", inputs, units))


def _bias(units: int, gates: int) -> TensorShape:
    return TensorShape.plain((gates * units,), ZERO, Role.OFFSET)


def _output(record: LstmRecord | GruRecord, shape: Shape, refusals: Refusals) -> Shape | None:
    """The shape of an output row; None, once it is refused, where rows are not sequences."""
    if not 1 <= record.units <= MAX_UNITS:
        refusals.field("units", record.units, f"it must be at least 1 and at most {MAX_UNITS}")
    if len(shape) != 2:
        refusals.shape(shape, "it takes rows of two axes: length, width; put a `reshape` or an `embedding` before it")
        return None
    return (shape[0], record.units) if record.sequence else (record.units,)


def _lstm(record: LstmRecord, shape: Shape, refusals: Refusals) -> Outcome:
    output = _output(record, shape, refusals)
    if output is None:
        return Outcome((record.units,))
    length, width = shape
    tensors = {"weight": _weight(width + record.units, record.units, 4), "bias": _bias(record.units, 4)}
    # Of each position x and h twice, the gates and their gradients, the cell and its tanh.
    return Outcome(output, tensors, kept=length * (2 * (width + record.units) + 10 * record.units))


def _gru(record: GruRecord, shape: Shape, refusals: Refusals) -> Outcome:
    output, units = _output(record, shape, refusals), record.units
    if output is None:
        return Outcome((units,))
    tensors = {
        "input_weight": _weight(shape[1], units, 3),
        "state_weight": _weight(units, units, 3),
        "input_bias": _bias(units, 3),
        "state_bias": _bias(units, 3),
    }
    # Of each position x, the state and the candidate's part, the gates and their gradients.
    return Outcome(output, tensors, kept=shape[0] * (shape[1] + 10 * units))


RULES: dict[type[Any], Rule] = {LstmRecord: _lstm, GruRecord: _gru}
