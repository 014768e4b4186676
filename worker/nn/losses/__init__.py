"""The losses: of one stack's outputs, the sum per shard and the gradient with respect to the outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from worker.nn.losses.binary_cross_entropy import BinaryCrossEntropy
from worker.nn.losses.loss import Loss, LossSetting
from worker.nn.losses.regression import Huber, MeanAbsoluteError, MeanSquaredError
from worker.nn.losses.softmax_cross_entropy import SoftmaxCrossEntropy
from worker.specs import (
    BinaryCrossEntropyRecord,
    HuberRecord,
    LossRecord,
    MeanAbsoluteErrorRecord,
    MeanSquaredErrorRecord,
    SoftmaxCrossEntropyRecord,
)

LOSSES: dict[type[Any], Callable[[Any, LossSetting], Loss]] = {
    SoftmaxCrossEntropyRecord: SoftmaxCrossEntropy,
    BinaryCrossEntropyRecord: BinaryCrossEntropy,
    MeanSquaredErrorRecord: MeanSquaredError,
    MeanAbsoluteErrorRecord: MeanAbsoluteError,
    HuberRecord: Huber,
}


def build_loss(
    record: LossRecord, shards: int, rows: int, output_shape: tuple[int, ...], dtype: np.dtype[Any], training: bool = True
) -> Loss:
    """The loss of a record at one stack shape; `output_shape` is of one row. Without `training` there is no backward pass."""
    return LOSSES[type(record)](record, LossSetting(shards, rows, output_shape, dtype, training))


__all__ = ["LOSSES", "Loss", "build_loss"]
