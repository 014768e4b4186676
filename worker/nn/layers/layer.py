"""What every layer is: a forward and a backward pass at one stack shape.

Names of axes: S shards of a stack, R rows of a shard, I inputs, O outputs. Inside the engine rows come last: an activation
is (S, *row shape, R), so that a product has its rows as columns and sums over features run down the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lockstep.contract.errors import UserError
from worker.nn.parameters import Array, aligned_zeros
from worker.nn.streams import Streams


@final
@dataclass(frozen=True, slots=True)
class Setting:
    """What a layer is built from, beside its record.

    `scratch` is as long as the largest output and means nothing from one call to the next; all layers share it.
    `parameters` are internal views of the flat vector; `gradients` are the same with the shards in front, and None where
    there is no backward pass. `reuse` is an array that the output may overwrite, the layer's own input.
    """

    place: str
    shards: int
    rows: int
    dtype: np.dtype[Any]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: dict[str, Array]
    gradients: dict[str, Array] | None
    needs_input_gradient: bool
    reuse: Array | None
    scratch: Array


class Layer(ABC):
    """A layer at one stack shape: its buffers, and views of its parameters and gradients.

    The arrays that `forward` and `backward` return are the layer's own and are overwritten by the next call.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.input_shape = (setting.shards, *setting.input_shape, setting.rows)
        self.output_shape = (setting.shards, *setting.output_shape, setting.rows)
        # What `forward` returns, where the next layer may overwrite it, since `backward` does not read it.
        self.overwritable: Array | None = None

    @abstractmethod
    def forward(self, x: Array, streams: Streams | None) -> Array:
        """x (S, *input, R) to y (S, *output, R). `streams` is None outside of training."""

    @abstractmethod
    def backward(self, dy: Array) -> Array:
        """dy (S, *output, R) to dx (S, *input, R); writes the sums over each shard's rows into the gradients.

        May overwrite dy. Where no input gradient is needed, what it returns means nothing.
        """

    def buffer(self, shape: tuple[int, ...]) -> Array:
        """A new aligned array of the layer's dtype."""
        return aligned_zeros(shape, self.setting.dtype)

    def check(self, x: Array) -> None:
        """Raises UserError, naming this layer, if x has not the shape it was built for."""
        if x.shape != self.input_shape:
            got = f"an input of shape {x.shape}"
            remedy = f"it needs {self.input_shape}: shards, {len(self.setting.input_shape)} axes of a row, rows"
            raise UserError.of(self.setting.place, got, remedy, "WRONG_SHAPE")
