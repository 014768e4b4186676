"""The fit between a model, its loss and the dataset."""

from __future__ import annotations

from lockstep.contract.errors import UserError, Violation
from worker.nn.shapes.network import layer_shapes
from worker.specs import Architecture, DenseRecord, LossRecord


def check_against_dataset(
    architecture: Architecture, loss: LossRecord, *, classes: int | None = None, width: int | None = None
) -> list[Violation]:
    """What does not fit between a model, its loss and the dataset's target: all of it, empty when it fits.

    `architecture.input_shape` is the dataset's. Give `classes`, the number of classes of a class target, or `width`, the
    numbers per row of a number target.
    """
    try:
        layers = layer_shapes(architecture)
    except UserError as error:
        return list(error.violations)
    place = f"loss.{loss.kind}"
    output = layers[-1].output_shape
    if loss.kind == "softmax_cross_entropy" and classes is None:
        remedy = "the dataset's target are numbers, not classes; use `mean_squared_error: {}`"
        return [Violation(place, f"{width} numbers per row", remedy, "LOSS_DOES_NOT_FIT")]
    if loss.kind == "mean_squared_error" and width is None:
        remedy = "the dataset's target are classes, not numbers; use `softmax_cross_entropy: {}`"
        return [Violation(place, f"{classes} classes", remedy, "LOSS_DOES_NOT_FIT")]
    last = _last_with_units(architecture)
    if len(output) != 1:
        remedy = f"the last layer must give one axis; put `flatten: {{}}` and a dense layer behind {layers[-1].place}"
        return [Violation(f"model.{layers[-1].place}", f"an output of shape {output}", remedy, "SHAPES_DO_NOT_MEET")]
    if classes is not None and output[0] < classes:
        remedy = f"the dataset has {classes} classes; the last layer must give at least {classes} outputs"
        return [Violation(last, str(output[0]), remedy, "TOO_FEW_OUTPUTS")]
    if width is not None and output[0] != width:
        remedy = f"the dataset has {width} numbers per row; the last layer must give exactly {width} outputs"
        return [Violation(last, str(output[0]), remedy, "WRONG_NUMBER_OF_OUTPUTS")]
    return []


def _last_with_units(architecture: Architecture) -> str:
    """The place where the number of outputs is decided."""
    for index in reversed(range(len(architecture.layers))):
        if isinstance(architecture.layers[index], DenseRecord):
            return f"model.layers[{index}].dense.units"
    return "model.layers"
