"""What is measured of the outputs of one block of rows, by the kind of its targets."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from worker.limits import MAX_R2_OUTPUTS
from worker.nn.layers.layer import Layout
from worker.nn.metrics.counts import Counts
from worker.nn.metrics.sums import Moments, Sums
from worker.nn.parameters import Array
from worker.specs import BinaryCrossEntropyRecord, LossRecord, SoftmaxCrossEntropyRecord

# Outputs that are looked at in one go: their copies stay small.
BLOCK_OUTPUTS = 1 << 18

# Labels are looked for among so many largest outputs, where there are more.
TOP = 5


class BlockMetrics(ABC):
    """`classes` is how many are told apart, 0 for numbers. `loss_is_log_loss`: the sum of the loss is that of the log loss."""

    classes = 0
    loss_is_log_loss = False

    @abstractmethod
    def measure(self, z: Array, y: NDArray[Any], rows: int, counts: Counts) -> Sums:
        """The sums, those of the loss aside, over the first `rows` of the first shard; adds labels to `counts`.

        z and y are as a loss takes them; z is left alone.
        """


@final
class ClassMetrics(BlockMetrics):
    """Of K outputs and a label, per row or per position; N are the labels that count.

    Shapes: z (1, K, R) and y (1, R), or z (1, R, L, K) and y (1, R, L); labels were checked.
    """

    def __init__(self, record: SoftmaxCrossEntropyRecord, output_shape: tuple[int, ...]) -> None:
        self.classes = output_shape[-1]
        self.ignored = record.ignored_label
        self.loss_is_log_loss = not record.label_smoothing and not record.class_weights
        self.step = max(1, BLOCK_OUTPUTS // self.classes)
        self.layout = Layout.ROWS_LAST if len(output_shape) == 1 else Layout.ROWS_FIRST

    def measure(self, z: Array, y: NDArray[Any], rows: int, counts: Counts) -> Sums:
        outputs = z[0, :, :rows].T if self.layout is Layout.ROWS_LAST else z[0, :rows].reshape(-1, self.classes)
        all_labels = y[0, :rows].reshape(-1)
        counted_N = np.arange(all_labels.size) if self.ignored is None else np.flatnonzero(all_labels != self.ignored)
        labels_N = all_labels[counted_N]
        predicted_N = np.zeros(labels_N.size, np.int64)
        losses_N = np.zeros(labels_N.size, np.float64)
        top = 0
        for first in range(0, labels_N.size, self.step):
            part = slice(first, first + self.step)
            # Rows of K contiguous outputs, whatever the layout.
            outputs_NK = np.ascontiguousarray(outputs[counted_N[part]])
            predicted_N[part] = np.argmax(outputs_NK, axis=1)
            if self.classes > TOP:
                top += _among_the_first(outputs_NK, labels_N[part])
            if self.classes == 2:
                counts.add_scores(labels_N[part], outputs_NK[:, 1] - outputs_NK[:, 0])
            if not self.loss_is_log_loss:
                losses_N[part] = _log_losses(outputs_NK, labels_N[part])
        correct = counts.add(labels_N, predicted_N)
        return Sums(rows, labels=labels_N.size, correct=correct, top_5=top, log_loss_sum=float(np.add.reduce(losses_N)))


def _among_the_first(outputs_NK: Array, labels_N: NDArray[np.int64]) -> int:
    """How many labels are among the first 5 by output, of equal ones the lower first. Compares alone; a NaN is behind all."""
    own_N1 = np.take_along_axis(outputs_NK, labels_N[:, None], axis=1)
    behind_NK = outputs_NK < own_N1
    behind_NK |= (outputs_NK == own_N1) & (np.arange(outputs_NK.shape[1]) >= labels_N[:, None])
    return int(np.count_nonzero(np.count_nonzero(behind_NK, axis=1) > outputs_NK.shape[1] - TOP))


def _log_losses(outputs_NK: Array, labels_N: NDArray[np.int64]) -> Array:
    """-log softmax(z)[y], as the loss without its options computes it."""
    d_NK = outputs_NK - np.maximum.reduce(outputs_NK, axis=1, keepdims=True)
    own_N = np.take_along_axis(d_NK, labels_N[:, None], axis=1)[:, 0]
    losses: Array = np.log(np.add.reduce(np.exp(d_NK), axis=1)) - own_N
    return losses


@final
class BinaryMetrics(BlockMetrics):
    """Of one logit and a label 0 or 1. Shapes: z (1, 1, R), y (1, R)."""

    classes = 2
    loss_is_log_loss = True

    def measure(self, z: Array, y: NDArray[Any], rows: int, counts: Counts) -> Sums:
        scores_N, labels_N = z[0, 0, :rows], y[0, :rows]
        counts.add_scores(labels_N, scores_N)
        return Sums(rows, labels=rows, correct=counts.add(labels_N, (scores_N > 0).astype(np.int64)))


@final
class NumberMetrics(BlockMetrics):
    """Of W outputs and as many numbers, compared in float64. Shapes: z (1, W, R) or (1, R, *output), y (1, R, *output)."""

    def __init__(self, output_shape: tuple[int, ...]) -> None:
        self.outputs = math.prod(output_shape)
        self.step = max(1, BLOCK_OUTPUTS // self.outputs)
        self.layout = Layout.ROWS_LAST if len(output_shape) == 1 else Layout.ROWS_FIRST

    def measure(self, z: Array, y: NDArray[Any], rows: int, counts: Counts) -> Sums:
        outputs = z[0, :, :rows].T if self.layout is Layout.ROWS_LAST else z[0, :rows].reshape(rows, self.outputs)
        targets = y[0, :rows].reshape(rows, self.outputs)
        squares_R, absolutes_R = np.zeros(rows, np.float64), np.zeros(rows, np.float64)
        for first in range(0, rows, self.step):
            part = slice(first, first + self.step)
            error_RW = np.ascontiguousarray(outputs[part], np.float64) - targets[part]
            np.add.reduce(np.abs(error_RW), axis=1, out=absolutes_R[part])
            np.add.reduce(error_RW * error_RW, axis=1, out=squares_R[part])
        return Sums(
            rows,
            numbers=rows * self.outputs,
            squared_error_sum=float(np.add.reduce(squares_R)),
            absolute_error_sum=float(np.add.reduce(absolutes_R)),
            moments=_moments(outputs, targets) if self.outputs <= MAX_R2_OUTPUTS else None,
        )


def _moments(outputs_RW: Array, targets_RW: Array) -> Moments:
    rows = len(targets_RW)
    y_RW = np.ascontiguousarray(targets_RW, np.float64)
    error_RW = np.ascontiguousarray(outputs_RW, np.float64) - y_RW
    # About the first row, so that a target that never changes has no deviation at all.
    shifted_RW = y_RW - y_RW[0]
    mean_W = np.add.reduce(shifted_RW, axis=0) / rows
    shifted_RW -= mean_W
    return Moments(
        rows,
        y_RW[0] + mean_W,
        np.add.reduce(shifted_RW * shifted_RW, axis=0),
        np.add.reduce(error_RW * error_RW, axis=0),
    )


@final
class NoMetrics(BlockMetrics):
    """Where outputs are the logits of numbers from 0 to 1, nothing but their loss is measured."""

    def measure(self, z: Array, y: NDArray[Any], rows: int, counts: Counts) -> Sums:
        return Sums(rows)


def block_metrics(record: LossRecord, output_shape: tuple[int, ...]) -> BlockMetrics:
    """What is measured under a loss; `output_shape` is of one row."""
    if isinstance(record, SoftmaxCrossEntropyRecord):
        return ClassMetrics(record, output_shape)
    if isinstance(record, BinaryCrossEntropyRecord):
        return BinaryMetrics() if output_shape == (1,) else NoMetrics()
    return NumberMetrics(output_shape)
