"""Small networks and stacks for the tests of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.nn.model import Stack
from worker.specs import (
    Architecture,
    DenseRecord,
    FlattenRecord,
    InitializerRecord,
    LayerRecord,
    LossRecord,
    MeanSquaredErrorRecord,
    ReluRecord,
    SoftmaxCrossEntropyRecord,
)

CROSS_ENTROPY = SoftmaxCrossEntropyRecord()
SQUARES = MeanSquaredErrorRecord()


def dense_net(units: Sequence[int], *, inputs: tuple[int, ...], bias: bool = True, flatten: bool = False) -> Architecture:
    """Dense layers of `units` with a rectifier after each but the last."""
    layers: list[LayerRecord] = [FlattenRecord()] if flatten else []
    for index, width in enumerate(units):
        last = index == len(units) - 1
        layers.append(DenseRecord(width, bias, InitializerRecord("glorot_uniform" if last else "he_normal")))
        if not last:
            layers.append(ReluRecord())
    return Architecture(tuple(layers), inputs)


def draw_stack(
    rng: np.random.Generator,
    shards: int,
    rows: int,
    inputs: tuple[int, ...],
    outputs: int,
    loss: LossRecord,
    dtype: Any = np.float32,
) -> Stack:
    """x (S, R, *inputs) and targets for `loss`."""
    x = rng.standard_normal((shards, rows, *inputs)).astype(dtype)
    y: NDArray[Any]
    if loss == CROSS_ENTROPY:
        y = rng.integers(0, outputs, (shards, rows))
    else:
        y = rng.standard_normal((shards, rows, outputs)).astype(dtype)
    return x, y
