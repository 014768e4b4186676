"""Numerical gradients in float64 against the backward pass, through the same methods that train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from worker.nn.combination import Node
from worker.nn.model import Model
from worker.nn.parameters import Array
from worker.nn.shapes.shape import Role
from worker.nn.streams import Streams
from worker.specs import Architecture, LossRecord

# Step of the central difference, relative to the parameter's size: near the cube root of float64's precision.
STEP = 1e-5


@final
@dataclass(frozen=True, slots=True)
class TensorCheck:
    """The worst relative error of a tensor's gradient, where it is, and both derivatives there."""

    name: str
    checked: int
    worst_relative_error: float
    worst_index: tuple[int, ...]
    numerical: float
    backward: float


def check_gradients(
    architecture: Architecture,
    loss: LossRecord,
    stacks: Sequence[tuple[Array, NDArray[Any]]],
    *,
    seed: int = 0,
    combine: Sequence[Node] | None = None,
    streams: Streams | None = None,
    samples: int = 200,
    parameters: Array | None = None,
) -> list[TensorCheck]:
    """Compares derivatives of the loss sum by central differences with the backward pass, per parameter tensor.

    At most `samples` elements of each tensor, evenly spread, so that the time is bounded. The relative error of an element is
    its error over the larger derivative, or over a thousandth of the tensor's largest where both are smaller than that.
    `stacks` are as for Model.loss_and_gradient; inputs become float64. `parameters` are the flat vector, else from `seed`.
    """
    model = Model(architecture, loss, input_shape=stacks[0][0].shape[2:], seed=seed, dtype=np.float64)
    if parameters is not None:
        model.parameters[...] = parameters
    wide = [(np.ascontiguousarray(x, np.float64), np.ascontiguousarray(y, model.target_dtype)) for x, y in stacks]
    count = len(combine) if combine is not None else 1
    model.loss_and_gradient(wide, combine, streams)
    gradient = np.add.reduce(model.gradients[:count], axis=0)

    def loss_at(index: int, value: float) -> float:
        model.parameters[index] = value
        return model.loss_and_gradient(wide, combine, streams).loss_sum

    checks = []
    for entry in model.layout.entries:
        if entry.role is Role.STATE:
            continue
        worst = TensorCheck(entry.name, 0, 0.0, (), 0.0, 0.0)
        floor = 1e-3 * float(np.abs(gradient[entry.offset : entry.offset + entry.size]).max()) + 1e-12
        picked = np.unique(np.linspace(0, entry.size - 1, min(samples, entry.size)).astype(np.int64))
        for element in picked.tolist():
            index = entry.offset + element
            kept = float(model.parameters[index])
            step = STEP * max(1.0, abs(kept))
            numerical = (loss_at(index, kept + step) - loss_at(index, kept - step)) / (2 * step)
            model.parameters[index] = kept
            backward = float(gradient[index])
            error = abs(numerical - backward) / max(abs(numerical), abs(backward), floor)
            # A NaN is the worst of all.
            if not error <= worst.worst_relative_error or not worst.checked:
                place = np.unravel_index(element, entry.internal_shape)
                public = tuple(int(place[axis]) for axis in entry.axes)
                worst = TensorCheck(entry.name, len(picked), float(error), public, numerical, backward)
        checks.append(worst)
    return checks
