"""Cross-entropy of the softmax of the outputs with a label, of each row or of each position of a row."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lockstep.contract.errors import UserError
from worker.nn.layers.layer import Layout
from worker.nn.losses.loss import Loss, LossSetting
from worker.nn.parameters import Array, aligned_zeros
from worker.specs import SoftmaxCrossEntropyRecord

PLACE = "loss.softmax_cross_entropy"


@final
class SoftmaxCrossEntropy(Loss):
    """-log softmax(z)[y] = log(sum of exp(z - m)) - (z[y] - m), with m the largest of z, so that nothing overflows.

    With label smoothing a and u = a / K it is the cross-entropy with 1 - a at the label and u everywhere added:
    log(sum of exp(z - m)) - (1 - a) (z[y] - m) - u (sum of (z - m)) (Szegedy et al. 2016). It is multiplied by the class
    weight of the label, and by 0 at the ignored label; denominators are the sums of these factors. A row of several positions
    has the sum of their losses, and counts as many times.
    Shapes: z (S, K, R) and y (S, R), or z (S, R, L, K) and y (S, R, L); labels from 0 to K - 1, and the ignored one.
    Backward: dz = (softmax(z) - u - (1 - a) onehot(y)) * factor, where z was.
    Raises UserError if a label is outside, or the class weights are not K.
    """

    target_dtype = np.dtype(np.int64)

    def __init__(self, record: SoftmaxCrossEntropyRecord, setting: LossSetting) -> None:
        super().__init__(setting)
        shards, rows, output_shape, dtype = setting.shards, setting.rows, setting.output_shape, setting.dtype
        self.classes = classes = output_shape[-1]
        if record.class_weights and len(record.class_weights) != classes:
            got = f"{len(record.class_weights)} weights"
            remedy = f"the model gives {classes} outputs; give one weight for each"
            raise UserError.of(f"{PLACE}.class_weights", got, remedy, "WRONG_NUMBER_OF_WEIGHTS")
        per_row = math.prod(output_shape[:-1])
        columns = rows * per_row
        last = self.layout is Layout.ROWS_LAST
        # z is seen as (S, K, N) or (S, N, K); one shard without S, along fewer axes sums cost less.
        self.axis = -2 if last else -1
        lead = (shards,) if shards > 1 else ()
        self.seen_shape = (*lead, classes, columns) if last else (*lead, columns, classes)
        self.kept_shape = (*lead, 1, columns) if last else (*lead, columns, 1)
        self.m, self.s = aligned_zeros(self.kept_shape, dtype), aligned_zeros(self.kept_shape, dtype)
        self.s_SN = self.s.reshape(shards, columns)
        self.log_s_SN = aligned_zeros((shards, columns), dtype)
        self.spread = aligned_zeros(self.seen_shape, dtype)
        self.picked_SN = aligned_zeros((shards, columns), dtype)
        # Where the outputs of position (s, n) begin in the flat z, and how far apart they are.
        positions = np.arange(columns) if last else np.arange(columns) * classes
        self.first_SN = np.arange(shards)[:, None] * (classes * columns) + positions
        self.stride = np.array(columns if last else 1, np.int64)
        self.index_SN = np.zeros((shards, columns), np.int64)
        self.per_row = per_row
        if per_row != 1:
            self.losses_SN = np.zeros((shards, columns), np.float64)
            self.losses_SRL = self.losses_SN.reshape(shards, rows, per_row)
        else:
            self.losses_SN = self.row_losses
        self.count_per_row(per_row)
        self._take_options(record)
        # The arrays that came last: the same come at each step.
        self.z: Array = aligned_zeros((0,), dtype)
        self.y: NDArray[Any] = self.z

    def _take_options(self, record: SoftmaxCrossEntropyRecord) -> None:
        shape = self.index_SN.shape
        self.at_label = self.number(1 - record.label_smoothing)
        self.everywhere = self.number(record.label_smoothing / self.classes)
        self.smooths, self.ignored = record.label_smoothing > 0, record.ignored_label
        if self.smooths:
            self.sum = aligned_zeros(self.kept_shape, self.dtype)
            self.sum_SN = self.sum.reshape(shape)
        self.has_factors = bool(record.class_weights) or self.ignored is not None
        self.class_weights = np.array(record.class_weights, self.dtype)
        if self.has_factors:
            self.factor = aligned_zeros(self.kept_shape, self.dtype)
            self.factor_SN = self.factor.reshape(shape)
            self.wide_SN = np.zeros(shape, np.float64)
            self.wide_SRL = self.wide_SN.reshape(self.shards, self.rows, self.per_row)
        if self.ignored is not None:
            self.ignored_label = np.array(self.ignored, np.int64)
            self.counts_SN, self.ones_SN = np.zeros(shape, bool), np.zeros(shape, np.int64)
            self.labels_SN, self.mask_SN = np.zeros(shape, np.int64), aligned_zeros(shape, self.dtype)

    @staticmethod
    def target_shape(output_shape: tuple[int, ...]) -> tuple[int, ...]:
        return output_shape[:-1]

    def forward(self, z: Array, y: NDArray[Any]) -> None:
        labels_SN = self._labels(y)
        if self.has_factors:
            self._weigh(labels_SN)
        if z is not self.z:
            self.z, self.seen, self.flat = z, z.reshape(self.seen_shape), z.reshape(-1)
        d, picked_SN = self.seen, self.picked_SN
        np.maximum.reduce(d, axis=self.axis, out=self.m, keepdims=True)
        # Spread out first: NumPy would do so itself, into memory that it allocates.
        self.spread[...] = self.m
        np.subtract(d, self.spread, d)
        np.multiply(labels_SN, self.stride, self.index_SN)
        np.add(self.index_SN, self.first_SN, self.index_SN)
        self.flat.take(self.index_SN, out=picked_SN, mode="clip")
        if self.smooths:
            np.add.reduce(d, axis=self.axis, out=self.sum, keepdims=True)
            np.multiply(self.sum, self.everywhere, self.sum)
            np.multiply(picked_SN, self.at_label, picked_SN)
            np.add(picked_SN, self.sum_SN, picked_SN)
        np.exp(d, d)
        np.add.reduce(d, axis=self.axis, out=self.s, keepdims=True)
        np.log(self.s_SN, self.log_s_SN)
        np.subtract(self.log_s_SN, picked_SN, picked_SN)
        if self.has_factors:
            np.multiply(picked_SN, self.factor_SN, picked_SN)
        self.losses_SN[...] = picked_SN
        if self.per_row != 1:
            np.add.reduce(self.losses_SRL, axis=2, out=self.row_losses)
        np.add.reduce(self.row_losses, axis=1, out=self.loss_sums)

    def backward(self) -> Array:
        p, picked_SN = self.seen, self.picked_SN
        self.spread[...] = self.s
        np.divide(p, self.spread, p)
        if self.smooths:
            np.subtract(p, self.everywhere, p)
        self.flat.take(self.index_SN, out=picked_SN, mode="clip")
        np.subtract(picked_SN, self.at_label, picked_SN)
        self.flat[self.index_SN] = picked_SN
        if self.has_factors:
            self.spread[...] = self.factor
            np.multiply(p, self.spread, p)
        return self.z

    def check(self, y: NDArray[Any]) -> None:
        self._labels(y)

    def _labels(self, y: NDArray[Any]) -> NDArray[Any]:
        """The labels (S, N), 0 in place of the ignored one."""
        if y is not self.y:
            self.y, self.y_SN = y, y.reshape(self.index_SN.shape)
            # As unsigned numbers the negative labels are the largest.
            self.unsigned = (self.y_SN if self.ignored is None else self.labels_SN).view(np.uint64).reshape(-1)
        labels_SN = y_SN = self.y_SN
        if self.ignored is not None:
            labels_SN = self.labels_SN
            np.not_equal(y_SN, self.ignored_label, out=self.counts_SN)
            self.ones_SN[...] = self.counts_SN
            np.multiply(y_SN, self.ones_SN, out=labels_SN)
        unsigned = self.unsigned
        if unsigned.item(unsigned.argmax()) >= self.classes:
            wrong = int(labels_SN[(labels_SN < 0) | (labels_SN >= self.classes)][0])
            remedy = f"labels must be whole numbers from 0 to {self.classes - 1}"
            if self.ignored is not None:
                remedy += f", or {self.ignored}, which is ignored"
            raise UserError.of(PLACE, f"the label {wrong}", remedy, "LABEL_OUT_OF_RANGE")
        return labels_SN

    def _weigh(self, labels_SN: NDArray[Any]) -> None:
        """Fills the factors, and from them the denominators."""
        if self.class_weights.size:
            self.class_weights.take(labels_SN, out=self.factor_SN, mode="clip")
            if self.ignored is not None:
                self.mask_SN[...] = self.counts_SN
                np.multiply(self.factor_SN, self.mask_SN, out=self.factor_SN)
        else:
            self.factor_SN[...] = self.counts_SN
        self.wide_SN[...] = self.factor_SN
        np.add.reduce(self.wide_SRL, axis=2, out=self.row_denominators)
        np.add.reduce(self.row_denominators, axis=1, out=self.denominators)
