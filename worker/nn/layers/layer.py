"""What every layer is: a forward and a backward pass at one stack shape.

Names of axes: S shards of a stack, R rows of a shard, and those of a row, which each layer names. Inside the engine a layer
sees an activation in one of two layouts, both C-contiguous: rows last, (S, *row shape, R), so that a product has its rows as
columns and sums over features run down the rows; or rows first, (S, R, *row shape), as sequences have it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol, final

import numpy as np

from lockstep.contract.errors import UserError
from worker.nn.parameters import Array
from worker.nn.shapes import LayerShapes
from worker.nn.streams import Streams


class Layout(Enum):
    """Where the rows of a shard stand in an activation."""

    # (S, *row shape, R)
    ROWS_LAST = "rows last"
    # (S, R, *row shape)
    ROWS_FIRST = "rows first"

    def shape(self, shards: int, rows: int, row: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an activation."""
        return (shards, *row, rows) if self is Layout.ROWS_LAST else (shards, rows, *row)


class Memory(Protocol):
    """Where a layer gets its arrays: all C-contiguous, aligned to 64 bytes, their contents undefined.

    Arrays whose lives do not overlap share memory, so a layer says how long each one lives and keeps to it. Nothing is
    allocated in a pass.
    """

    def output(self, shape: tuple[int, ...]) -> Array:
        """What `forward` returns: lives from the own forward pass to the last reader."""
        ...

    def kept(self, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None) -> Array:
        """Lives from the own forward pass to the own backward pass."""
        ...

    def forward_scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None) -> Array:
        """Lives in the own forward pass."""
        ...

    def backward_scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None) -> Array:
        """Lives in the own backward pass."""
        ...

    def input_gradient(self, shape: tuple[int, ...]) -> Array:
        """What `backward` returns: lives from the own backward pass to that of the layer before."""
        ...

    def constant(self, shape: tuple[int, ...], value: float, dtype: np.dtype[Any] | None = None) -> Array:
        """An array full of a number that nobody may write; layers share it."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Setting:
    """What a layer is built from, beside its record.

    `x` is the array that `forward` will be given, in `layout`; where that comes from the network's input it only stands for it
    in shape and layout, and may be a strided view. `parameters` are internal views of the flat vector, state included;
    `gradients` are the same with the shards in front, and None where there is no backward pass (evaluation).
    `may_overwrite_input` and `may_overwrite_gradient` say whether the layer is the last to read x in the forward pass (nobody's
    backward pass reads it), and the last to read dy. `activation` is the record of an elementwise layer that this one computes
    along with its own output, where its class absorbs one.
    """

    shapes: LayerShapes
    shards: int
    rows: int
    dtype: np.dtype[Any]
    layout: Layout
    x: Array
    parameters: dict[str, Array]
    gradients: dict[str, Array] | None
    needs_input_gradient: bool
    may_overwrite_input: bool
    may_overwrite_gradient: bool
    memory: Memory
    activation: Any = None

    @property
    def training(self) -> bool:
        """Whether a backward pass follows."""
        return self.gradients is not None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of x."""
        return self.layout.shape(self.shards, self.rows, self.shapes.input_shape)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of y."""
        return self.layout.shape(self.shards, self.rows, self.shapes.output_shape)


class Layer(ABC):
    """A layer at one stack shape: its buffers, and views of its parameters and gradients.

    The constructor takes (record, setting), gets its arrays from `setting.memory` and sets `y`, the array that `forward`
    returns; it may be a view of x, or x itself where that may be overwritten. `prepare_backward` is called once afterwards, in
    training alone, the last layer first; it gets the rest and returns the array that `backward` will return. Both passes then
    get the same arrays each time.
    """

    # Whether the backward pass reads x, or y; the constructor decides where it depends on the setting.
    keeps_input: bool = False
    keeps_output: bool = False
    # Whether a first layer can read x as a strided view of the rows.
    takes_strided_input: ClassVar[bool] = False
    # Whether an elementwise layer behind this one is computed in this one, block by block.
    absorbs_activation: ClassVar[bool] = False
    # Whether a rectifier before this one may be computed in this one instead, which is the same.
    takes_activation_before: ClassVar[bool] = False
    # The tensor (O, I) whose gradient may be asked for tile by tile, behind the backward pass; the gradients then lack it.
    tiled: ClassVar[str | None] = None
    # Whether the forward pass depends on the network's input beside x.
    looks: bool = False

    y: Array

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.place = setting.shapes.place
        self.input_shape, self.output_shape = setting.input_shape, setting.output_shape

    @classmethod
    def layout(cls, record: Any, row: tuple[int, ...]) -> Layout | None:
        """The layout in which the layer takes input rows of shape `row`, and gives its output; None: either."""
        return Layout.ROWS_LAST

    def prepare_backward(self, dy: Array) -> Array:
        """Gets the arrays of the backward pass; dy is in the layout of y. Returns dx, in the layout of x.

        It may be dy itself, or a view of it, where that may be overwritten or is only passed on. Where no input gradient is
        needed, what is returned means nothing.
        """
        return dy

    def gradient_tile(self, shard: int, rows: slice, out: Array) -> None:
        """Rows of the `tiled` gradient of one shard, into out (rows, I)."""
        raise NotImplementedError

    def look(self, network_input: Array) -> None:
        """Sees the network's input (S, R, *row) right before its own forward pass, where `looks` says so."""
        raise NotImplementedError

    def room_for_input_gradient(self, dy: Array) -> Array:
        """Where an elementwise layer writes dx: in the place of dy, if that may be overwritten."""
        return dy if self.setting.may_overwrite_gradient else self.setting.memory.input_gradient(self.input_shape)

    @abstractmethod
    def forward(self, x: Array, streams: Streams | None) -> Array:
        """x to y. `streams` is None where nothing may be drawn."""

    @abstractmethod
    def backward(self, dy: Array) -> Array:
        """dy to dx; writes the sums over each shard's rows into the gradients."""

    def refuse(self, got: str, remedy: str, reason: str) -> UserError:
        """The error that names this layer."""
        return UserError.of(self.place, got, remedy, reason)

    def check(self, x: Array) -> None:
        """Raises UserError, naming this layer, if x has not the shape it was built for."""
        if x.shape != self.input_shape:
            axes = "shards, a row's axes, rows" if self.setting.layout is Layout.ROWS_LAST else "shards, rows, a row's axes"
            raise self.refuse(f"an input of shape {x.shape}", f"it needs {self.input_shape}: {axes}", "WRONG_SHAPE")
