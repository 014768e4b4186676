"""The losses: of one stack's outputs, the sum per shard and the gradient with respect to the outputs.

A loss is a sum over rows; the division by the denominator comes after all shards have been added. Axes: S shards, K classes
or outputs, R rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lockstep.contract.errors import UserError
from worker.nn.parameters import Array, aligned_zeros
from worker.specs import LossRecord, MeanSquaredErrorRecord, SoftmaxCrossEntropyRecord


class Loss(ABC):
    """A loss at one stack shape. After `forward`: `row_losses` (S, R), `loss_sums` and `denominators` (S,), float64."""

    # The dtype of targets, and whether a row's target is a single class.
    target_dtype: np.dtype[Any]

    def __init__(self, shards: int, outputs: int, rows: int, dtype: np.dtype[Any]) -> None:
        self.row_losses = np.zeros((shards, rows), np.float64)
        self.loss_sums = np.zeros(shards, np.float64)
        self.denominators = np.zeros(shards, np.float64)
        self.denominators.fill(rows)

    @staticmethod
    @abstractmethod
    def target_shape(output_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one row's target."""

    @abstractmethod
    def forward(self, z_SKR: Array, y: NDArray[Any]) -> None:
        """Fills row_losses and loss_sums from outputs z and targets y (S, R, *target); may overwrite z."""

    @abstractmethod
    def backward(self) -> Array:
        """The gradient of the loss sum with respect to z (S, K, R), after `forward`; in z's place where it can."""

    @abstractmethod
    def correct(self, z_SKR: Array, y: NDArray[Any], rows: int) -> int:
        """Among the first `rows` of the first shard, those whose largest output is the label's; 0 without labels."""


@final
class SoftmaxCrossEntropy(Loss):
    """-log softmax(z)[y] = log(sum of exp(z - m)) - (z[y] - m), with m the largest of z, so that nothing overflows.

    Shapes: z (S, K, R), y (S, R) whole numbers from 0 to K - 1.
    Backward: dz = softmax(z) - onehot(y), where z was.
    Raises UserError if a label is not below K.
    """

    target_dtype = np.dtype(np.int64)

    def __init__(self, shards: int, outputs: int, rows: int, dtype: np.dtype[Any]) -> None:
        super().__init__(shards, outputs, rows, dtype)
        self.classes = outputs
        self.m_S1R = aligned_zeros((shards, 1, rows), dtype)
        self.s_S1R = aligned_zeros((shards, 1, rows), dtype)
        self.s_SR = self.s_S1R.reshape(shards, rows)
        self.log_s_SR = aligned_zeros((shards, rows), dtype)
        self.spread_SKR = aligned_zeros((shards, outputs, rows), dtype)
        self.picked_SR = aligned_zeros((shards, rows), dtype)
        self.one = np.array(1, dtype)
        self.rows = np.array(rows, np.int64)
        # Where column (s, r) begins in the flat z (S, K, R).
        self.first_SR = np.arange(shards)[:, None] * (outputs * rows) + np.arange(rows)
        self.index_SR = np.zeros((shards, rows), np.int64)

    @staticmethod
    def target_shape(output_shape: tuple[int, ...]) -> tuple[int, ...]:
        return ()

    def forward(self, z_SKR: Array, y_SR: NDArray[Any]) -> None:
        # As unsigned numbers the negative labels are the largest.
        labels = y_SR.view(np.uint64).reshape(-1)
        if labels[labels.argmax()] >= self.classes:
            wrong = int(y_SR[(y_SR < 0) | (y_SR >= self.classes)][0])
            remedy = f"labels must be whole numbers from 0 to {self.classes - 1}"
            raise UserError.of("loss.softmax_cross_entropy", f"the label {wrong}", remedy, "LABEL_OUT_OF_RANGE")
        m_S1R, s_S1R = self.m_S1R, self.s_S1R
        self.z_SKR = z_SKR
        self.z_flat = z_SKR.reshape(-1)
        np.maximum.reduce(z_SKR, axis=1, out=m_S1R, keepdims=True)
        # Spread out first: NumPy would do so itself, into memory that it allocates.
        np.copyto(self.spread_SKR, m_S1R)
        np.subtract(z_SKR, self.spread_SKR, out=z_SKR)
        np.multiply(y_SR, self.rows, out=self.index_SR)
        np.add(self.index_SR, self.first_SR, out=self.index_SR)
        self.z_flat.take(self.index_SR, out=self.picked_SR, mode="clip")
        np.exp(z_SKR, out=z_SKR)
        np.add.reduce(z_SKR, axis=1, out=s_S1R, keepdims=True)
        np.log(self.s_SR, out=self.log_s_SR)
        np.subtract(self.log_s_SR, self.picked_SR, out=self.picked_SR)
        np.copyto(self.row_losses, self.picked_SR)
        np.add.reduce(self.row_losses, axis=1, out=self.loss_sums)

    def backward(self) -> Array:
        np.copyto(self.spread_SKR, self.s_S1R)
        np.divide(self.z_SKR, self.spread_SKR, out=self.z_SKR)
        self.z_flat.take(self.index_SR, out=self.picked_SR, mode="clip")
        np.subtract(self.picked_SR, self.one, out=self.picked_SR)
        self.z_flat[self.index_SR] = self.picked_SR
        return self.z_SKR

    def correct(self, z_SKR: Array, y_SR: NDArray[Any], rows: int) -> int:
        largest = np.argmax(z_SKR[0, :, :rows], axis=0)
        return int(np.count_nonzero(largest == y_SR[0, :rows]))


@final
class MeanSquaredError(Loss):
    """Sum over the K outputs of (z - y)^2, divided by K.

    Shapes: z (S, K, R), y (S, R, K).
    Backward: dz = (z - y) * (2 / K), where z was.
    """

    def __init__(self, shards: int, outputs: int, rows: int, dtype: np.dtype[Any]) -> None:
        super().__init__(shards, outputs, rows, dtype)
        self.target_dtype = dtype
        self.squares_SKR = aligned_zeros((shards, outputs, rows), dtype)
        self.sums_SR = aligned_zeros((shards, rows), dtype)
        self.outputs = np.array(outputs, dtype)
        self.factor = np.array(2 / outputs, dtype)

    @staticmethod
    def target_shape(output_shape: tuple[int, ...]) -> tuple[int, ...]:
        return output_shape

    def forward(self, z_SKR: Array, y_SRK: NDArray[Any]) -> None:
        self.z_SKR = z_SKR
        np.copyto(self.squares_SKR, y_SRK.transpose(0, 2, 1))
        np.subtract(z_SKR, self.squares_SKR, out=z_SKR)
        np.multiply(z_SKR, z_SKR, out=self.squares_SKR)
        np.add.reduce(self.squares_SKR, axis=1, out=self.sums_SR)
        np.divide(self.sums_SR, self.outputs, out=self.sums_SR)
        np.copyto(self.row_losses, self.sums_SR)
        np.add.reduce(self.row_losses, axis=1, out=self.loss_sums)

    def backward(self) -> Array:
        np.multiply(self.z_SKR, self.factor, out=self.z_SKR)
        return self.z_SKR

    def correct(self, z_SKR: Array, y_SRK: NDArray[Any], rows: int) -> int:
        return 0


LOSSES: dict[type[Any], type[Loss]] = {
    SoftmaxCrossEntropyRecord: SoftmaxCrossEntropy,
    MeanSquaredErrorRecord: MeanSquaredError,
}


def build_loss(
    record: LossRecord, shards: int, rows: int, output_shape: tuple[int, ...], dtype: np.dtype[Any], training: bool = True
) -> Loss:
    """The loss of a record at one stack shape; `output_shape` is of one row, and has one axis."""
    make: Callable[[int, int, int, np.dtype[Any]], Loss] = LOSSES[type(record)]
    return make(shards, math.prod(output_shape), rows, dtype)
