"""Every layer's output and parameter shapes, the flat vector's layout and a memory estimate; no NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from lockstep.contract.arithmetic import EVALUATION_BLOCK_ROWS, shard_rows
from lockstep.contract.errors import UserError, Violation
from worker.limits import MAX_ACTIVATION, MAX_PARAMETERS
from worker.specs import Architecture, DenseRecord, FlattenRecord, LossRecord, ReluRecord

# Vectors and the tensors in them begin at multiples of so many floats: 64 bytes.
ALIGNMENT_FLOATS = 16

# Sums and updates run over blocks of so many floats: they stay in the second-level cache, and the calls cost little beside.
BLOCK_FLOATS = 65536

# What a worker's process holds before it has a model: Python, NumPy and the stubs.
PROCESS_BYTES = 96 << 20


@final
@dataclass(frozen=True, slots=True)
class ParameterShape:
    """One tensor that is learned: its public shape, and how the engine keeps it.

    The flat vector holds the tensor in C order of `internal_shape`; transposed by `axes` that is the public shape.
    """

    shape: tuple[int, ...]
    internal_shape: tuple[int, ...]
    axes: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True)
class LayerShapes:
    """What a layer turns into what. `name` is "0.dense"; `place` is "layers[0].dense"; shapes are of one row."""

    name: str
    place: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    tensors: dict[str, ParameterShape]

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The public shapes of its tensors, by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def parameter_count(self) -> int:
        """How many numbers are learned in it."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


@final
@dataclass(frozen=True, slots=True)
class ParameterEntry:
    """A tensor's place in the flat vector: `size` floats from `offset`, in C order of `internal_shape`.

    `flat[offset:offset + size].reshape(internal_shape).transpose(axes)` has the public `shape`.
    """

    name: str
    shape: tuple[int, ...]
    internal_shape: tuple[int, ...]
    axes: tuple[int, ...]
    offset: int
    size: int


@final
@dataclass(frozen=True, slots=True)
class ParameterLayout:
    """The flat vector: `size` floats, a multiple of 16, as is every offset. Floats of no tensor are always zero."""

    size: int
    entries: tuple[ParameterEntry, ...]


Outcome = tuple[tuple[int, ...], dict[str, ParameterShape]]


def _dense(record: DenseRecord, input_shape: tuple[int, ...], place: str, wrong: list[Violation]) -> Outcome:
    if len(input_shape) != 1:
        remedy = "it needs rows of one axis; put `flatten: {}` before it"
        wrong.append(Violation(place, f"rows of shape {input_shape}", remedy, "SHAPES_DO_NOT_MEET"))
    if not 1 <= record.units <= 1 << 20:
        wrong.append(Violation(f"{place}.units", str(record.units), "it must be at least 1 and at most 1048576"))
    inputs, units = math.prod(input_shape), record.units
    tensors = {"weight": ParameterShape((inputs, units), (units, inputs), (1, 0))}
    if record.bias:
        tensors["bias"] = ParameterShape((units,), (units,), (0,))
    return (units,), tensors


def _same(record: ReluRecord, input_shape: tuple[int, ...], place: str, wrong: list[Violation]) -> Outcome:
    return input_shape, {}


def _flatten(record: FlattenRecord, input_shape: tuple[int, ...], place: str, wrong: list[Violation]) -> Outcome:
    return (math.prod(input_shape),), {}


_RULES: dict[type[Any], Callable[[Any, tuple[int, ...], str, list[Violation]], Outcome]] = {
    DenseRecord: _dense,
    ReluRecord: _same,
    FlattenRecord: _flatten,
}


def layer_shapes(architecture: Architecture, input_shape: tuple[int, ...] | None = None) -> list[LayerShapes]:
    """The shapes of all layers, in order; `input_shape` is the architecture's unless given.

    Raises UserError at "model.layers[2].dense" where shapes do not meet or numbers overflow; nothing is allocated.
    """
    shape = architecture.input_shape if input_shape is None else tuple(input_shape)
    wrong: list[Violation] = []
    layers: list[LayerShapes] = []
    if not shape or any(size < 1 for size in shape):
        wrong.append(Violation("dataset", f"rows of shape {shape}", "rows need at least one input", "SHAPES_DO_NOT_MEET"))
    total = 0
    for index, record in enumerate(architecture.layers):
        place = f"layers[{index}].{record.kind}"
        output, tensors = _RULES[type(record)](record, shape, f"model.{place}", wrong)
        layer = LayerShapes(f"{index}.{record.kind}", place, record.kind, shape, output, tensors)
        layers.append(layer)
        before, total = total, total + layer.parameter_count
        if total > MAX_PARAMETERS >= before:
            remedy = f"the model may learn at most {MAX_PARAMETERS} numbers up to and with this layer"
            wrong.append(Violation(f"model.{place}", f"{total} parameters", remedy, "MODEL_TOO_LARGE"))
        if math.prod(output) > MAX_ACTIVATION >= math.prod(shape):
            remedy = f"a layer may give at most {MAX_ACTIVATION} numbers per row"
            wrong.append(Violation(f"model.{place}", f"an output of shape {output}", remedy, "MODEL_TOO_LARGE"))
        shape = output
    if wrong:
        raise UserError(wrong)
    return layers


def parameter_layout(architecture: Architecture, input_shape: tuple[int, ...] | None = None) -> ParameterLayout:
    """Where each tensor lies in the flat vector: the layers in order, each tensor aligned. Raises as `layer_shapes`."""
    entries = []
    offset = 0
    for layer in layer_shapes(architecture, input_shape):
        for name, tensor in layer.tensors.items():
            size = math.prod(tensor.shape)
            entry = ParameterEntry(f"{layer.name}.{name}", tensor.shape, tensor.internal_shape, tensor.axes, offset, size)
            entries.append(entry)
            offset += aligned(size)
    return ParameterLayout(offset, tuple(entries))


def aligned(floats: int) -> int:
    """The next multiple of 16 floats."""
    return -(-floats // ALIGNMENT_FLOATS) * ALIGNMENT_FLOATS


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


def worker_memory_bytes(
    architecture: Architecture, *, batch_size: int, shards: int, workers: int, optimizer_states: int
) -> int:
    """What one worker is expected to hold at most: vectors, gradient stacks, activations, the process itself.

    The parameters count in full, though workers of a node share one copy; dataset pages that the system can drop do not count.
    """
    layers = layer_shapes(architecture)
    size = parameter_layout(architecture).size
    own_shards = max((rank + 1) * shards // workers - rank * shards // workers for rank in range(workers))
    rows_of_shards = [end - first for first, end in shard_rows(batch_size, shards)]
    rows = own_shards * rows_of_shards[0]
    subtrees = min(own_shards, max(1, 2 * (own_shards.bit_length() - 1))) if workers > 1 else 1
    vectors = size * (1 + subtrees) + optimizer_states * (size // workers + BLOCK_FLOATS)
    largest = max(sum(aligned(math.prod(t.shape)) for t in layer.tensors.values()) for layer in layers)
    stack = own_shards * max(largest, min(size, BLOCK_FLOATS))
    per_row = math.prod(architecture.input_shape) + sum(3 * math.prod(layer.output_shape) for layer in layers)
    # Twice: the short batch of an epoch has buffers of its own.
    floats = vectors + 2 * stack + (2 * rows + EVALUATION_BLOCK_ROWS) * per_row
    return PROCESS_BYTES + 4 * floats
