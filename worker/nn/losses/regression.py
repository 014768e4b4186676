"""Losses of the difference between output and target: squared, absolute, and Huber's."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from worker.nn.losses.loss import LossSetting, OutputwiseLoss
from worker.nn.parameters import Array, aligned_zeros
from worker.specs import HuberRecord, MeanAbsoluteErrorRecord, MeanSquaredErrorRecord


@final
class MeanSquaredError(OutputwiseLoss):
    """Mean over the K outputs of (z - y)^2.

    Shapes: z (S, K, R) or (S, R, *output), y (S, R, *output).
    Backward: dz = (z - y) * (2 / K), where z was.
    """

    def __init__(self, record: MeanSquaredErrorRecord, setting: LossSetting) -> None:
        super().__init__(setting)
        self.losses = aligned_zeros(self.seen_shape, setting.dtype)
        self.factor = self.number(2 / self.outputs)

    def forward(self, z: Array, y: NDArray[Any]) -> None:
        d = self.receive(z, y, self.losses)
        np.subtract(d, self.losses, out=d)
        np.multiply(d, d, out=self.losses)
        self.finish(self.losses)

    def backward(self) -> Array:
        np.multiply(self.seen, self.factor, out=self.seen)
        return self.z


@final
class MeanAbsoluteError(OutputwiseLoss):
    """Mean over the K outputs of |z - y|.

    Shapes: z (S, K, R) or (S, R, *output), y (S, R, *output).
    Backward: dz = sign(z - y) / K, where z was; 0 where z = y.
    """

    def __init__(self, record: MeanAbsoluteErrorRecord, setting: LossSetting) -> None:
        super().__init__(setting)
        self.losses = aligned_zeros(self.seen_shape, setting.dtype)
        self.factor = self.number(1 / self.outputs)

    def forward(self, z: Array, y: NDArray[Any]) -> None:
        d = self.receive(z, y, self.losses)
        np.subtract(d, self.losses, out=d)
        np.abs(d, out=self.losses)
        self.finish(self.losses)

    def backward(self) -> Array:
        np.sign(self.seen, out=self.seen)
        np.multiply(self.seen, self.factor, out=self.seen)
        return self.z


@final
class Huber(OutputwiseLoss):
    """Mean over the K outputs of d^2 / 2 for |d| <= delta, delta * (|d| - delta / 2) beyond, with d = z - y (Huber 1964).

    Both are c * (|d| - c / 2) with c = min(|d|, delta).
    Shapes: z (S, K, R) or (S, R, *output), y (S, R, *output).
    Backward: dz = d / K with d cut off at -delta and delta, where z was.
    """

    def __init__(self, record: HuberRecord, setting: LossSetting) -> None:
        super().__init__(setting)
        dtype = setting.dtype
        self.losses, self.cut = aligned_zeros(self.seen_shape, dtype), aligned_zeros(self.seen_shape, dtype)
        self.half_cut = aligned_zeros(self.seen_shape, dtype)
        self.delta, self.minus_delta = self.number(record.delta), self.number(-record.delta)
        self.half, self.factor = self.number(0.5), self.number(1 / self.outputs)

    def forward(self, z: Array, y: NDArray[Any]) -> None:
        d = self.receive(z, y, self.losses)
        np.subtract(d, self.losses, out=d)
        np.abs(d, out=self.losses)
        np.minimum(self.losses, self.delta, out=self.cut)
        np.multiply(self.cut, self.half, out=self.half_cut)
        np.subtract(self.losses, self.half_cut, out=self.losses)
        np.multiply(self.losses, self.cut, out=self.losses)
        self.finish(self.losses)

    def backward(self) -> Array:
        d = self.seen
        np.minimum(d, self.delta, out=d)
        np.maximum(d, self.minus_delta, out=d)
        np.multiply(d, self.factor, out=d)
        return self.z
