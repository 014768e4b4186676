"""The flat vector: where each tensor of a network lies in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from worker.nn.shapes.network import layer_shapes
from worker.nn.shapes.shape import Initial, LayerShapes, Role, Shape, TensorShape, flattened
from worker.specs import Architecture

# Vectors and the tensors in them begin at multiples of so many floats: 64 bytes.
ALIGNMENT_FLOATS = 16

# Sums and updates run over blocks of so many floats: they stay in the second-level cache, and the calls cost little beside.
BLOCK_FLOATS = 65536

# The gradient of a large dense weight is summed in tiles of so many floats: a few lie in the third-level cache together.
TILE_FLOATS = 1 << 20

# Rows of a tile come in multiples of the products' own tiles, and are never few: each product packs all of its other side.
TILE_ROWS = 64

# Floats of a block of a norm; one begins at each tensor and every so many floats in it. BLOCK_FLOATS is a multiple.
NORM_BLOCK = 4096


@final
@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor's place in the flat vector: `size` floats from `offset`, in C order of `internal_shape`.

    `flat[offset:offset + size].reshape(internal_shape).transpose(axes)` has the public `shape`. `layer` is the number of its
    layer.
    """

    name: str
    layer: int
    tensor: TensorShape
    offset: int
    size: int

    @property
    def shape(self) -> Shape:
        return self.tensor.shape

    @property
    def internal_shape(self) -> Shape:
        return self.tensor.internal_shape

    @property
    def axes(self) -> tuple[int, ...]:
        return self.tensor.axes

    @property
    def initial(self) -> Initial:
        return self.tensor.initial

    @property
    def role(self) -> Role:
        return self.tensor.role


@final
@dataclass(frozen=True, slots=True)
class ParameterLayout:
    """The flat vector: `size` floats, a multiple of 16, as is every offset. Floats of no tensor are always zero.

    First come the tensors that decay, then, from `decayed` on, the other learned ones, then, from `learned` on, the state;
    each part in the order of the layers.
    """

    size: int
    decayed: int
    learned: int
    entries: tuple[TensorEntry, ...]


def parameter_layout(architecture: Architecture, input_shape: Shape | None = None) -> ParameterLayout:
    """Where each tensor lies in the flat vector. Raises as `layer_shapes`."""
    return layout_of(layer_shapes(architecture, input_shape))


def layout_of(layers: list[LayerShapes]) -> ParameterLayout:
    """Where each tensor of these layers lies."""
    entries: list[TensorEntry] = []
    ends = []
    offset = 0
    for role in (Role.WEIGHT, Role.OFFSET, Role.STATE):
        for layer in flattened(layers):
            for name, tensor in layer.tensors.items():
                if tensor.role is role:
                    size = math.prod(tensor.shape)
                    entries.append(TensorEntry(f"{layer.name}.{name}", layer.number, tensor, offset, size))
                    offset += aligned(size)
        ends.append(offset)
    return ParameterLayout(ends[2], ends[0], ends[1], tuple(entries))


def aligned(floats: int) -> int:
    """The next multiple of 16 floats."""
    return -(-floats // ALIGNMENT_FLOATS) * ALIGNMENT_FLOATS
