"""The shapes of a whole network, layer by layer, those inside residual and parallel layers included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lockstep.contract.errors import UserError, Violation
from worker.limits import MAX_ACTIVATION, MAX_PARAMETERS
from worker.nn.shapes import activations, convolution, dense, normalization, recurrent, sequence
from worker.nn.shapes.shape import LayerShapes, Refusals, Rule, Shape
from worker.specs import (
    Architecture,
    AttentionRecord,
    EmbeddingRecord,
    FlattenRecord,
    LayerRecord,
    ParallelRecord,
    ReshapeRecord,
    ResidualRecord,
)

RULES: dict[type[Any], Rule] = {
    **dense.RULES,
    **activations.RULES,
    **convolution.RULES,
    **normalization.RULES,
    **sequence.RULES,
    **recurrent.RULES,
}


def layer_shapes(architecture: Architecture, input_shape: Shape | None = None) -> list[LayerShapes]:
    """The shapes of all layers, in order; `input_shape` is the architecture's unless given.

    Raises UserError at "model.layers[2].dense" where shapes do not meet or numbers overflow; nothing is allocated.
    """
    shape = architecture.input_shape if input_shape is None else tuple(input_shape)
    walk = _Walk(shape)
    if not shape or any(size < 1 for size in shape):
        remedy = "rows need at least one input"
        walk.wrong.append(Violation("dataset", f"rows of shape {shape}", remedy, "SHAPES_DO_NOT_MEET"))
        shape = shape or (1,)
    layers, _ = walk.chain(architecture.layers, shape, "", "layers")
    if walk.wrong:
        raise UserError(walk.wrong)
    return list(layers)


class _Walk:
    """The walk through a network: the next layer's number, the numbers learned so far, and what is wrong."""

    def __init__(self, input_shape: Shape) -> None:
        self.wrong: list[Violation] = []
        self._input = input_shape
        # The layer that first made something else of the network's input on the way to here; empty as long as none has.
        self._changed_by = ""
        self._number = 0
        self._learned = 0

    def chain(
        self, records: Sequence[LayerRecord], shape: Shape, name: str, place: str
    ) -> tuple[tuple[LayerShapes, ...], Shape]:
        layers: list[LayerShapes] = []
        for index, record in enumerate(records):
            before = len(self.wrong)
            layer = self._layer(record, shape, f"{name}{index}.{record.kind}", f"{place}[{index}].{record.kind}")
            if not isinstance(record, FlattenRecord | ReshapeRecord):
                self._changed_by = self._changed_by or f"model.{layer.place}"
            layers.append(layer)
            shape = layer.output_shape
            if len(self.wrong) > before:
                # What comes out of it is not known: whatever would be said of the layers behind it might not be true.
                break
        return tuple(layers), shape

    def _layer(self, record: LayerRecord, shape: Shape, name: str, place: str) -> LayerShapes:
        number, self._number = self._number, self._number + 1
        if isinstance(record, ResidualRecord):
            return self._residual(record, shape, name, place, number)
        if isinstance(record, ParallelRecord):
            return self._parallel(record, shape, name, place, number)
        refusals = Refusals(f"model.{place}", self.wrong)
        outcome = RULES[type(record)](record, shape, refusals)
        if isinstance(record, EmbeddingRecord) and self._changed_by:
            remedy = f"it takes the indices of the network's input, of which {self._changed_by} before it makes something else"
            self.wrong.append(Violation(f"model.{place}", "", f"{remedy}; put it first", "INPUTS_ARE_NOT_INDICES"))
        if isinstance(record, AttentionRecord) and record.padding_index is not None and self._input != shape[:1]:
            remedy = (
                f"padding is looked for in the network's input; it has rows of shape {self._input}, and not an index for each "
                f"of {shape[0]} positions: leave the field out"
            )
            refusals.field("padding_index", record.padding_index, remedy)
        layer = LayerShapes(record, name, place, number, shape, outcome.output, outcome.tensors, kept=outcome.kept)
        self._count(layer)
        return layer

    def _branch(
        self, records: Sequence[LayerRecord], shape: Shape, name: str, place: str
    ) -> tuple[tuple[LayerShapes, ...], Shape]:
        """A path beside others, which all begin with what comes to here."""
        changed_by = self._changed_by
        found = self.chain(records, shape, name, place)
        self._changed_by = changed_by
        return found

    def _residual(self, record: ResidualRecord, shape: Shape, name: str, place: str, number: int) -> LayerShapes:
        before = len(self.wrong)
        path, output = self._branch(record.layers, shape, f"{name}.layers.", f"{place}.layers")
        shortcut, other = self._branch(record.shortcut, shape, f"{name}.shortcut.", f"{place}.shortcut")
        if output != other and len(self.wrong) == before:
            way = "the short cut" if record.shortcut else "the input, which is added to it,"
            remedy = f"{way} has shape {other}; both must be one shape"
            self.wrong.append(Violation(f"model.{place}.layers", f"an output of shape {output}", remedy, "SHAPES_DO_NOT_MEET"))
        return LayerShapes(record, name, place, number, shape, output, {}, (path, shortcut))

    def _parallel(self, record: ParallelRecord, shape: Shape, name: str, place: str, number: int) -> LayerShapes:
        before = len(self.wrong)
        branches, outputs = [], []
        for index, records in enumerate(record.branches):
            branch, output = self._branch(records, shape, f"{name}.branches.{index}.", f"{place}.branches[{index}].layers")
            branches.append(branch)
            outputs.append(output)
        fixed = 0 if record.join == "add" else 1
        for index, output in enumerate(outputs if len(self.wrong) == before else ()):
            if len(output) != len(outputs[0]) or output[: len(output) - fixed] != outputs[0][: len(outputs[0]) - fixed]:
                apart = "" if record.join == "add" else " but for the last axis"
                remedy = f"it must be {outputs[0]}, the first branch's{apart}"
                where = f"model.{place}.branches[{index}]"
                self.wrong.append(Violation(where, f"an output of shape {output}", remedy, "SHAPES_DO_NOT_MEET"))
        output = outputs[0] if record.join == "add" else (*outputs[0][:-1], sum(shape[-1] for shape in outputs))
        layer = LayerShapes(record, name, place, number, shape, output, {}, tuple(branches))
        self._count(layer)
        return layer

    def _count(self, layer: LayerShapes) -> None:
        own = sum(math.prod(tensor.shape) for tensor in layer.tensors.values())
        before, self._learned = self._learned, self._learned + own
        if self._learned > MAX_PARAMETERS >= before:
            remedy = f"the model may hold at most {MAX_PARAMETERS} numbers up to and with this layer"
            self.wrong.append(Violation(f"model.{layer.place}", f"{self._learned} parameters", remedy, "MODEL_TOO_LARGE"))
        if math.prod(layer.output_shape) > MAX_ACTIVATION >= math.prod(layer.input_shape):
            remedy = f"a layer may give at most {MAX_ACTIVATION} numbers per row"
            where = f"model.{layer.place}"
            self.wrong.append(Violation(where, f"an output of shape {layer.output_shape}", remedy, "MODEL_TOO_LARGE"))
