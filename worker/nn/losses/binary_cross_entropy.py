"""Cross-entropy of logits with labels 0 and 1, or with numbers between."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lockstep.contract.errors import UserError
from worker.nn.losses.loss import LossSetting, OutputwiseLoss
from worker.nn.parameters import Array, aligned_zeros
from worker.specs import BinaryCrossEntropyRecord


@final
class BinaryCrossEntropy(OutputwiseLoss):
    """Mean over the K outputs of -y log s(z) - (1 - y) log(1 - s(z)), with s the sigmoid.

    It is max(z, 0) - z y + log(1 + e) with e = exp(-|z|), so that nothing overflows.
    Shapes: z (S, K, R) or (S, R, *output); y (S, R) whole numbers 0 and 1 where a row has one output, (1,), else
    (S, R, *output) from 0 to 1.
    Backward: dz = (s(z) - y) / K, where z was. With q = e / (1 + e) that is (1 - y) - q for z >= 0 and (0 - y) + q below,
    which keeps its digits where s(z) is next to y.
    Raises UserError if a target lies outside.
    """

    def __init__(self, record: BinaryCrossEntropyRecord, setting: LossSetting) -> None:
        super().__init__(setting)
        dtype = setting.dtype
        self.has_labels = setting.output_shape == (1,)
        if self.has_labels:
            self.target_dtype = np.dtype(np.int64)
        self.e, self.target = aligned_zeros(self.seen_shape, dtype), aligned_zeros(self.seen_shape, dtype)
        self.losses, self.t = aligned_zeros(self.seen_shape, dtype), aligned_zeros(self.seen_shape, dtype)
        self.zero, self.one = self.number(0), self.number(1)
        self.factor = self.number(1 / self.outputs)
        if setting.training:
            self.above = np.zeros(self.seen_shape, bool)

    @staticmethod
    def target_shape(output_shape: tuple[int, ...]) -> tuple[int, ...]:
        return () if output_shape == (1,) else output_shape

    def forward(self, z: Array, y: NDArray[Any]) -> None:
        self.check(y)
        z = self.receive(z, y, self.target)
        e, losses, t = self.e, self.losses, self.t
        np.abs(z, out=e)
        np.negative(e, out=e)
        np.exp(e, out=e)
        np.maximum(z, self.zero, out=losses)
        np.multiply(z, self.target, out=t)
        np.subtract(losses, t, out=losses)
        np.add(e, self.one, out=t)
        np.log(t, out=t)
        np.add(losses, t, out=losses)
        self.finish(losses)

    def backward(self) -> Array:
        z, e, t, sign = self.seen, self.e, self.t, self.losses
        np.add(e, self.one, out=t)
        np.divide(e, t, out=e)
        np.greater_equal(z, self.zero, out=self.above)
        np.copyto(sign, self.above)
        np.subtract(sign, self.target, out=t)
        np.add(sign, sign, out=sign)
        np.subtract(sign, self.one, out=sign)
        np.multiply(e, sign, out=e)
        np.subtract(t, e, out=z)
        np.multiply(z, self.factor, out=z)
        return self.z

    def check(self, y: NDArray[Any]) -> None:
        flat = y.reshape(-1)
        low, high = flat[flat.argmin()], flat[flat.argmax()]
        # A NaN is neither: it shows in the loss.
        if not (low < 0 or high > 1):
            return
        wrong = low if low < 0 else high
        if self.has_labels:
            remedy = "labels must be 0 or 1"
            raise UserError.of("loss.binary_cross_entropy", f"the label {wrong}", remedy, "LABEL_OUT_OF_RANGE")
        remedy = "targets must be numbers from 0 to 1"
        raise UserError.of("loss.binary_cross_entropy", f"the target {wrong:g}", remedy, "TARGET_OUT_OF_RANGE")
