"""What every loss is: sums and a gradient at one stack shape, in buffers of its own.

A loss is a sum over rows; the division by the denominator comes after all shards have been added. Axes: S shards, R rows of a
shard, K classes or outputs, L positions of a sequence, N = R L all positions of a shard, F all outputs of a row.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from worker.nn.layers.layer import Layout
from worker.nn.parameters import Array, aligned_zeros


@final
@dataclass(frozen=True, slots=True)
class LossSetting:
    """What a loss is built from, beside its record: S shards of R rows, the shape of one row's outputs, what is computed in,
    and whether a backward pass follows."""

    shards: int
    rows: int
    output_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    training: bool


class Loss(ABC):
    """A loss at one stack shape. The constructor of a leaf takes (record, setting).

    z, the outputs, come in `layout`: (S, K, R) where a row has one axis of outputs, else (S, R, *output_shape). Targets are
    (S, R, *target_shape) of `target_dtype`. After `forward`, in float64: `row_losses` (S, R) and `loss_sums` (S,), and what
    they are to be divided by, `row_denominators` (S, R) and `denominators` (S,).
    """

    target_dtype: np.dtype[Any]

    def __init__(self, setting: LossSetting) -> None:
        shards, rows = setting.shards, setting.rows
        self.layout = Layout.ROWS_LAST if len(setting.output_shape) == 1 else Layout.ROWS_FIRST
        self.shards, self.rows, self.dtype = shards, rows, setting.dtype
        self.row_losses = np.zeros((shards, rows), np.float64)
        self.loss_sums = np.zeros(shards, np.float64)
        self.row_denominators = np.zeros((shards, rows), np.float64)
        self.denominators = np.zeros(shards, np.float64)
        self.count_per_row(1)

    def count_per_row(self, count: int) -> None:
        """Every row counts this much."""
        self.row_denominators.fill(count)
        self.denominators.fill(self.rows * count)

    def number(self, value: float) -> Array:
        """A 0-d constant of the pass."""
        return np.array(value, self.dtype)

    @staticmethod
    @abstractmethod
    def target_shape(output_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one row's target."""

    @abstractmethod
    def forward(self, z: Array, y: NDArray[Any]) -> None:
        """Fills the sums from outputs z and targets y; may overwrite z, and holds it until `backward`."""

    @abstractmethod
    def backward(self) -> Array:
        """The gradient of the loss sum with respect to z, of z's shape and in its place, after `forward`."""

    def check(self, y: NDArray[Any]) -> None:  # noqa: B027 (most take any target)
        """Raises UserError where a target cannot be, as `forward` does."""


class OutputwiseLoss(Loss):
    """A row's loss is the mean over its outputs of a function of output and target.

    Both are seen as (S, K, R) where a row has one axis of outputs, else as (S, R, F); `outputs_axis` is that of K or F.
    """

    def __init__(self, setting: LossSetting) -> None:
        super().__init__(setting)
        shards, rows, dtype = setting.shards, setting.rows, setting.dtype
        self.target_dtype = dtype
        self.outputs = math.prod(setting.output_shape)
        last = self.layout is Layout.ROWS_LAST
        self.outputs_axis = 1 if last else 2
        self.seen_shape = (shards, self.outputs, rows) if last else (shards, rows, self.outputs)
        self.sums_SR = aligned_zeros((shards, rows), dtype)
        self.count = self.number(self.outputs)

    @staticmethod
    def target_shape(output_shape: tuple[int, ...]) -> tuple[int, ...]:
        return output_shape

    def receive(self, z: Array, y: NDArray[Any], target: Array) -> Array:
        """Puts y into `target`, in the order of z; returns z as it is seen."""
        self.z = z
        targets = y.reshape(self.shards, self.rows, self.outputs)
        np.copyto(target, targets.transpose(0, 2, 1) if self.layout is Layout.ROWS_LAST else targets)
        self.seen = z.reshape(self.seen_shape)
        return self.seen

    def finish(self, losses: Array) -> None:
        """From the losses of all outputs to the sums."""
        np.add.reduce(losses, axis=self.outputs_axis, out=self.sums_SR)
        np.divide(self.sums_SR, self.count, out=self.sums_SR)
        np.copyto(self.row_losses, self.sums_SR)
        np.add.reduce(self.row_losses, axis=1, out=self.loss_sums)
