"""Numerical gradients in float64 against the backward pass, and float32 against float64, through the methods that train."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from worker.nn.combination import Subtree
from worker.nn.model import Model, Stack
from worker.nn.parameters import Array
from worker.nn.shapes import Role, TensorEntry
from worker.nn.streams import Streams
from worker.randomness import Purpose, Stream
from worker.specs import Architecture, LossRecord

# The largest relative error of a right backward pass in float64.
TOLERANCE = 1e-6

# The largest deviation of a layer's float32 gradients. Rounding gives 1e-7 to 1e-4; a rectifier whose input is so near 0 that
# it is open in one precision and closed in the other gives more, the less the more units there are.
FLOAT32_TOLERANCE = 1e-2

# Steps of the central differences, relative to the parameter's size. The extrapolation's error is of their fourth power; the
# second, at which rounding counts for more, is for where a kink lies within the first.
STEPS = (1e-4, 1e-6)

# Evaluations of the loss that one element takes, with one step.
EVALUATIONS_AN_ELEMENT = 4

# How uncertain a loss is, relative to itself and its denominator: it comes of many roundings, each of half an epsilon.
ROUNDING = 16 * sys.float_info.epsilon

# What float32 may leave of a layer's gradient where it is 0 and only rounding remains, for each row and unit of the loss.
FLOAT32_ROUNDING = 32 * 2.0**-23


@final
@dataclass(frozen=True, slots=True)
class TensorCheck:
    """The worst relative error among the checked elements of a tensor, its place in public, and both derivatives there.

    `skipped` are elements near a kink, where there is no derivative to compare. `deviation` is that of its layer's gradients
    in the model's own precision from those in float64.
    """

    name: str
    shape: tuple[int, ...]
    elements: int
    checked: int
    skipped: int
    worst_relative_error: float
    worst_index: tuple[int, ...]
    numerical: float
    backward: float
    deviation: float


@final
@dataclass(frozen=True, slots=True)
class Derivative:
    """A central difference: what rounding, and what a kink or a strong curvature near by, may make it wrong by."""

    value: float
    rounding: float
    kink: float


class GradientCheck:
    """Compares the derivatives of the loss sum of some stacks with the backward pass, one learned tensor after another.

    With f the loss along one parameter, D(h) = (f(h) - f(-h)) / 2h and S(h) = f(h) - 2 f(0) + f(-h), the derivative is taken
    as (4 D(h/2) - D(h)) / 3 (Richardson 1911). A unit that crosses a kink on the way (rectifiers, maxima, hinges) shows:
    where f is smooth, k = max(|D(h) - D(h/2)|, |S(h) / h - 4 S(h/2) / h|) is of the order h^2, while one kink within h makes k
    at least 6/7 of the error that it causes, wherever it lies. An element that is wrong by at most 2 k is tried again with a
    shorter h, and then skipped, for the difference says no more about it; any other counts.

    The relative error is the error over the larger of both derivatives; or, where both are smaller, over a thousandth of the
    tensor's largest, or over the size at which the rounding of f is an error of TOLERANCE. The deviation of a layer is
    |g - g64| / |g64| in the Euclidean norm over its tensors, |g64| being at least a millionth of that of the whole gradient,
    and at least the size at which FLOAT32_ROUNDING is a deviation of FLOAT32_TOLERANCE: g is from `model`, g64 from the same
    parameters in float64.

    `stacks`, `combine` and `streams` are as for Model.loss_and_gradient; inputs become what is computed in. At most `samples`
    elements of a tensor are compared, drawn from the model's seed, one from each of as many equal parts; and so many that all
    take at most `evaluations` of the loss, yet one of each tensor. Running statistics (STATE) have no gradient and are left
    out.
    """

    def __init__(
        self,
        model: Model,
        stacks: Sequence[Stack],
        *,
        combine: tuple[Subtree, ...] | None = None,
        streams: Streams | None = None,
        samples: int = 200,
        evaluations: int = 1_000_000,
    ) -> None:
        self._combine, self._streams = combine, streams
        self._model = double = Model(
            model.architecture, model.loss, input_shape=model.input_shape, seed=model.seed, dtype=np.float64
        )
        double.parameters[...] = model.parameters
        self._stacks = _converted(stacks, double)
        self.tensors = [entry for entry in double.layout.entries if entry.role is not Role.STATE]
        self._samples = max(1, min(samples, evaluations // (EVALUATIONS_AN_ELEMENT * max(1, len(self.tensors)))))
        with np.errstate(all="ignore"):
            model.loss_and_gradient(_converted(stacks, model), combine, streams)
            result = double.loss_and_gradient(self._stacks, combine, streams)
            self._loss = result.loss_sum
            size = abs(self._loss) + result.denominator
            self._rounding = ROUNDING * size
            count = 1 if combine is None else len(combine)
            # The loss alone leaves the gradients as they are.
            self._gradient = double.gradients[0] if count == 1 else np.add.reduce(double.gradients[:count], axis=0)
            self._deviations = self._measure_deviations(model.gradients[:count], FLOAT32_ROUNDING * size)

    def tensor(self, number: int, enough: Callable[[], bool] = lambda: False) -> TensorCheck:
        """Checks the `number`-th of `tensors`; goes on with the next element until `enough`, yet checks at least one."""
        entry = self.tensors[number]
        gradient = self._gradient[entry.offset : entry.offset + entry.size]
        # The summand is for a tensor without a gradient: 0 over 0 is no error.
        floor = 1e-3 * float(np.abs(gradient).max()) + 1e-12
        checked = skipped = 0
        worst, at, both = 0.0, 0, (0.0, 0.0)
        for element in self._drawn(number, entry):
            if checked + skipped and enough():
                break
            backward = float(gradient[element])
            for relative_step in STEPS:
                measured = self._derivative(entry.offset + element, relative_step)
                apart = abs(measured.value - backward)
                error = apart / max(abs(measured.value), abs(backward), floor, measured.rounding / TOLERANCE)
                at_a_kink = error >= TOLERANCE and apart <= 2 * measured.kink
                if not at_a_kink:
                    break
            if at_a_kink:
                skipped += 1
                continue
            checked += 1
            # A NaN is the worst of all.
            if checked == 1 or error > worst or (math.isnan(error) and not math.isnan(worst)):
                worst, at, both = error, element, (measured.value, backward)
        place = np.unravel_index(at, entry.internal_shape)
        return TensorCheck(
            name=entry.name,
            shape=entry.shape,
            elements=entry.size,
            checked=checked,
            skipped=skipped,
            worst_relative_error=worst,
            worst_index=tuple(int(place[axis]) for axis in entry.axes) if checked else (),
            numerical=both[0],
            backward=both[1],
            deviation=self._deviations[entry.layer],
        )

    def _drawn(self, number: int, entry: TensorEntry) -> list[int]:
        """Elements to check: all, or one of each of so many equal parts, in a drawn order."""
        count = min(self._samples, entry.size)
        words = Stream(self._model.seed, Purpose.GRADIENT_CHECK, shard=number).words(count).tolist()
        drawn = []
        for part, word in enumerate(words):
            first, end = part * entry.size // count, (part + 1) * entry.size // count
            drawn.append((word, first + word % (end - first)))
        return [element for _, element in sorted(drawn)]

    def _derivative(self, index: int, relative_step: float) -> Derivative:
        """The derivative of the loss sum with respect to an element of the flat vector."""
        kept = float(self._model.parameters[index])
        step = relative_step * max(1.0, abs(kept))
        with np.errstate(all="ignore"):
            (above, below), (near_above, near_below) = (
                [self._loss_at(index, kept + side * h) for side in (1, -1)] for h in (step, step / 2)
            )
        self._model.parameters[index] = kept
        far, near = (above - below) / (2 * step), (near_above - near_below) / step
        far_bend, near_bend = above - 2 * self._loss + below, near_above - 2 * self._loss + near_below
        kink = max(abs(far - near), abs(far_bend / step - 4 * near_bend / step))
        return Derivative((4 * near - far) / 3, 3 * self._rounding / step, kink)

    def _loss_at(self, index: int, value: float) -> float:
        self._model.parameters[index] = value
        return self._model.loss_sum(self._stacks, self._combine, self._streams)

    def _measure_deviations(self, gradients: Array, rounding: float) -> dict[int, float]:
        """By layer; `gradients` (subtrees, P) are of the model's own precision, in which `rounding` is none."""
        squares: dict[int, list[float]] = {}
        for entry in self.tensors:
            part = slice(entry.offset, entry.offset + entry.size)
            double = self._gradient[part]
            apart = np.subtract(np.add.reduce(gradients[:, part], axis=0, dtype=np.float64), double)
            sums = squares.setdefault(entry.layer, [0.0, 0.0])
            sums[0] += float(np.dot(apart, apart))
            sums[1] += float(np.dot(double, double))
        whole = math.sqrt(sum(size for _, size in squares.values()))
        least = max(1e-6 * whole, rounding / FLOAT32_TOLERANCE, 1e-30)
        return {layer: math.sqrt(apart) / max(math.sqrt(size), least) for layer, (apart, size) in squares.items()}


def check_gradients(
    architecture: Architecture,
    loss: LossRecord,
    stacks: Sequence[Stack],
    *,
    seed: int = 0,
    combine: tuple[Subtree, ...] | None = None,
    streams: Streams | None = None,
    samples: int = 200,
    parameters: Array | None = None,
) -> list[TensorCheck]:
    """All tensors as GradientCheck has them. `parameters` are the flat vector in float64, else drawn from `seed`."""
    model = Model(architecture, loss, input_shape=stacks[0][0].shape[2:], seed=seed, dtype=np.float64)
    if parameters is not None:
        model.parameters[...] = parameters
    check = GradientCheck(model, stacks, combine=combine, streams=streams, samples=samples)
    return [check.tensor(number) for number in range(len(check.tensors))]


def _converted(stacks: Sequence[Stack], model: Model) -> list[tuple[Array, NDArray[Any]]]:
    """The stacks as a model of some precision takes them."""
    return [(np.ascontiguousarray(x, model.dtype), np.ascontiguousarray(y, model.target_dtype)) for x, y in stacks]
