"""The fit between a model, its loss and the dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from lockstep.contract.errors import UserError, Violation
from worker.nn.shapes.network import layer_shapes
from worker.nn.shapes.shape import LayerShapes, Shape
from worker.specs import Architecture, DenseRecord, GruRecord, LossRecord, LstmRecord, SoftmaxCrossEntropyRecord

# Losses of the difference to numbers.
_OF_NUMBERS = ("mean_squared_error", "mean_absolute_error", "huber")


@final
@dataclass(frozen=True, slots=True)
class _Target:
    """What a dataset gives for a row: one class, a class at each of several positions, or numbers."""

    classes: int | None
    width: int | None
    positions: int | None

    @property
    def text(self) -> str:
        """As it stands in a message."""
        if self.classes is None:
            return "a number per row" if self.width == 1 else f"{self.width} numbers per row"
        each = "" if self.positions is None else f" at each of {self.positions} positions"
        return f"{self.classes} classes{each}"


def check_against_dataset(
    architecture: Architecture,
    loss: LossRecord,
    *,
    classes: int | None = None,
    width: int | None = None,
    positions: int | None = None,
    no_label: int | None = None,
) -> list[Violation]:
    """What does not fit between a model, its loss and the dataset's target: all of it, empty when it fits.

    `architecture.input_shape` is the dataset's. Give `classes`, the number of classes of a class target, with `positions`
    where each row has as many labels and `no_label` where some positions have that in place of one; or `width`, the numbers
    per row of a number target.
    """
    try:
        layers = layer_shapes(architecture)
    except UserError as error:
        return list(error.violations)
    target = _Target(classes, width, positions)
    output = layers[-1].output_shape
    wrong = _kind_of_target(loss, target, output)
    if wrong is not None:
        return [wrong]
    wrong = _axes(layers, target)
    if wrong is not None:
        return [wrong]
    found = [
        _number_of_outputs(loss, target, output[-1], _last_with_units(architecture)),
        _class_weights(loss, output[-1]),
        _ignored_label(loss, no_label),
    ]
    return [violation for violation in found if violation is not None]


def _kind_of_target(loss: LossRecord, target: _Target, output: Shape) -> Violation | None:
    """Classes for losses of classes, numbers for losses of numbers."""
    remedy = ""
    if loss.kind == "softmax_cross_entropy" and target.classes is None:
        remedy = "the dataset's targets are numbers, not classes; use `mean_squared_error: {}`"
    elif loss.kind in _OF_NUMBERS and target.classes is not None:
        remedy = "the dataset's targets are classes, not numbers; use `softmax_cross_entropy: {}`"
    elif loss.kind == "binary_cross_entropy":
        if target.classes is not None and (target.classes > 2 or target.positions is not None):
            remedy = "it takes one label per row, 0 or 1; use `softmax_cross_entropy: {}`"
        elif target.width == 1 and output == (1,):
            remedy = (
                "with one output it takes classes; give the labels 0 and 1 as whole numbers, or use `mean_squared_error: {}`"
            )
    return Violation(f"loss.{loss.kind}", target.text, remedy, "LOSS_DOES_NOT_FIT") if remedy else None


def _axes(layers: Sequence[LayerShapes], target: _Target) -> Violation | None:
    """One axis of outputs, behind one of positions where the target has them."""
    output, place = layers[-1].output_shape, f"model.{layers[-1].place}"
    if target.positions is None and len(output) != 1:
        remedy = "the last layer must give one axis; put `global_pool: {}` or `flatten: {}` before the last dense layer"
        if any(isinstance(layer.record, LstmRecord | GruRecord) for layer in layers):
            remedy += ", or leave `sequence` out of the last lstm or gru"
        return Violation(place, f"an output of shape {output}", remedy, "SHAPES_DO_NOT_MEET")
    if target.positions is not None and (len(output) != 2 or output[0] != target.positions):
        remedy = (
            f"the dataset has a label at each of {target.positions} positions; "
            f"the last layer must give rows of shape ({target.positions}, outputs)"
        )
        return Violation(place, f"an output of shape {output}", remedy, "SHAPES_DO_NOT_MEET")
    return None


def _number_of_outputs(loss: LossRecord, target: _Target, outputs: int, place: str) -> Violation | None:
    if target.classes is None:
        if outputs == target.width:
            return None
        count = f"{target.width} output{'' if target.width == 1 else 's'}"
        remedy = f"the dataset has {target.text}; the last layer must give exactly {count}"
        return Violation(place, str(outputs), remedy, "WRONG_NUMBER_OF_OUTPUTS")
    if loss.kind == "binary_cross_entropy":
        if outputs == 1:
            return None
        remedy = "with classes, binary_cross_entropy takes one output; give 1 unit, or use `softmax_cross_entropy: {}`"
        return Violation(place, str(outputs), remedy, "WRONG_NUMBER_OF_OUTPUTS")
    least = target.classes
    if isinstance(loss, SoftmaxCrossEntropyRecord) and loss.ignored_label == least - 1:
        # The last class needs no output.
        least -= 1
    if outputs >= least:
        return None
    remedy = f"the dataset has {target.classes} classes; the last layer must give at least {least} outputs"
    return Violation(place, str(outputs), remedy, "TOO_FEW_OUTPUTS")


def _class_weights(loss: LossRecord, outputs: int) -> Violation | None:
    if not isinstance(loss, SoftmaxCrossEntropyRecord) or len(loss.class_weights) in (0, outputs):
        return None
    remedy = f"the model gives {outputs} outputs; give one weight for each"
    return Violation(f"loss.{loss.kind}.class_weights", f"{len(loss.class_weights)} weights", remedy, "WRONG_NUMBER_OF_WEIGHTS")


def _ignored_label(loss: LossRecord, no_label: int | None) -> Violation | None:
    """What stands for no label is the label that the loss ignores."""
    if not isinstance(loss, SoftmaxCrossEntropyRecord) or no_label in (None, loss.ignored_label):
        return None
    got = "none" if loss.ignored_label is None else str(loss.ignored_label)
    remedy = f"the dataset has {no_label} at positions without a label; set ignored_label to {no_label}"
    return Violation(f"loss.{loss.kind}.ignored_label", got, remedy, "WRONG_IGNORED_LABEL")


def _last_with_units(architecture: Architecture) -> str:
    """The place where the number of outputs is decided."""
    for index in reversed(range(len(architecture.layers))):
        if isinstance(architecture.layers[index], DenseRecord):
            return f"model.layers[{index}].dense.units"
    return "model.layers"
