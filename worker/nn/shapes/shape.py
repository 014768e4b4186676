"""What a layer turns into what: the shape of one row, and of each tensor that belongs to the layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias, final

from lockstep.contract.errors import Violation
from worker.specs import LayerRecord

Shape: TypeAlias = tuple[int, ...]


class Role(Enum):
    """What a tensor is for the update."""

    # Learned, and subject to decay and penalties.
    WEIGHT = "weight"
    # Learned; decay and penalties leave it alone: biases, and the scales and shifts of normalizations.
    OFFSET = "offset"
    # Not learned: a running mean of what the layer writes in the place of a gradient (sums over a shard's rows).
    STATE = "state"


@final
@dataclass(frozen=True, slots=True)
class Initial:
    """How a tensor begins. `kind` is a key of `worker.nn.initializers.INITIALIZERS`; `inputs` and `outputs` are what a unit
    of the tensor sums over and feeds; `value` is as in InitializerRecord, and the number itself for "constant"."""

    kind: str
    inputs: int = 1
    outputs: int = 1
    value: float = 0.0


ZERO = Initial("constant")
ONE = Initial("constant", value=1.0)


@final
@dataclass(frozen=True, slots=True)
class TensorShape:
    """One tensor of a layer: its public shape, and how the engine keeps it.

    The flat vector holds the tensor in C order of `internal_shape`; transposed by `axes` that is the public shape. `keep` is
    the weight of the old value in a running mean (STATE alone).
    """

    shape: Shape
    internal_shape: Shape
    axes: tuple[int, ...]
    initial: Initial
    role: Role = Role.WEIGHT
    keep: float = 0.0

    @classmethod
    def plain(cls, shape: Shape, initial: Initial, role: Role = Role.WEIGHT, keep: float = 0.0) -> TensorShape:
        """A tensor that the engine keeps as it is in public."""
        return cls(shape, shape, tuple(range(len(shape))), initial, role, keep)


@final
@dataclass(slots=True)
class Refusals:
    """What does not fit at a layer. `place` is "model.layers[2].conv2d"."""

    place: str
    wrong: list[Violation]

    def shape(self, got: Shape, remedy: str) -> None:
        """The input's shape is not one that the layer takes."""
        self.wrong.append(Violation(self.place, f"rows of shape {got}", remedy, "SHAPES_DO_NOT_MEET"))

    def field(self, name: str, value: object, remedy: str, reason: str = "INVALID_FIELD") -> None:
        """A field of the layer has a value that cannot be."""
        self.wrong.append(Violation(f"{self.place}.{name}", str(value), remedy, reason))


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """The shape of one row's output, and the layer's tensors by name in the order in which they are drawn.

    `kept` is about how many numbers a row takes in a training pass beside input, output and their gradients.
    """

    output: Shape
    tensors: dict[str, TensorShape] = field(default_factory=dict)
    kept: int = 0


# A layer's rule: from its record and the shape of an input row. After a refusal any outcome will do.
Rule: TypeAlias = Callable[[Any, Shape, Refusals], Outcome]


@final
@dataclass(frozen=True, slots=True)
class LayerShapes:
    """A layer in its place. Shapes are of one row.

    `name` is "0.dense", or "2.residual.layers.0.conv2d" inside another; `place` is "layers[2].residual.layers[0].conv2d".
    `number` counts all layers depth first, one that holds others before them; it keys the layer's random streams.
    `branches` are the layers inside: of residual the path and the short cut, of parallel its branches. `kept` is as in Outcome.
    """

    record: LayerRecord
    name: str
    place: str
    number: int
    input_shape: Shape
    output_shape: Shape
    tensors: dict[str, TensorShape]
    branches: tuple[tuple[LayerShapes, ...], ...] = ()
    kept: int = 0

    @property
    def kind(self) -> str:
        """Its key in a job file."""
        return self.record.kind

    @property
    def parameters(self) -> dict[str, Shape]:
        """The public shapes of its own tensors that are learned, by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items() if tensor.role is not Role.STATE}

    @property
    def parameter_count(self) -> int:
        """How many numbers are learned in it and in the layers inside it."""
        own = sum(math.prod(shape) for shape in self.parameters.values())
        return own + sum(layer.parameter_count for branch in self.branches for layer in branch)


def flattened(layers: Sequence[LayerShapes]) -> Iterator[LayerShapes]:
    """All layers in the order of their numbers, those inside others included."""
    for layer in layers:
        yield layer
        for branch in layer.branches:
            yield from flattened(branch)
