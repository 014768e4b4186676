"""The optimizers: elementwise updates of flat float32 vectors, in place, in blocks that stay in cache."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import DTypeLike

from lockstep.contract.errors import InternalError
from worker.nn.parameters import Array, aligned_zeros
from worker.nn.shapes import BLOCK_FLOATS
from worker.specs import (
    AdagradRecord,
    AdamRecord,
    AdamWRecord,
    LambRecord,
    MomentumRecord,
    NesterovRecord,
    OptimizerRecord,
    RmsPropRecord,
    SgdRecord,
)


class Optimizer(ABC):
    """Moves parameters against the mean gradient. What it remembers lies in the state vectors that it is given.

    `state_names` are the names of those vectors; each is as long as the parameters and begins as zeros.
    """

    # Whether `decays` makes a difference.
    has_decay: ClassVar[bool] = False

    def __init__(self, record: OptimizerRecord, dtype: DTypeLike = np.float32) -> None:
        self.state_names = record.state_names
        self._dtype = np.dtype(dtype)
        self._scratch = aligned_zeros((0,), self._dtype)
        # 0-d arrays: cheaper to pass than Python numbers.
        self._rate = np.array(0, self._dtype)

    def apply(
        self,
        parameters: Array,
        gradient: Array,
        state: Sequence[Array],
        step: int,
        learning_rate: float,
        decays: bool = True,
    ) -> None:
        """One update of 1-D views of equal length: the parameters and the state, in place; the gradient may be overwritten.

        The gradient is the mean, after the division by the denominator. `step` counts from 1. `decays` says whether these are
        weights, which decay where the method has a decay. Any cut of a vector into views gives the same bits.
        """
        if len(state) != len(self.state_names):
            raise InternalError(f"{type(self).__name__} got {len(state)} state vectors; it needs {len(self.state_names)}")
        size = len(parameters)
        if len(self._scratch) < min(size, BLOCK_FLOATS):
            self._scratch = aligned_zeros((min(size, BLOCK_FLOATS),), self._dtype)
        self._begin(step, learning_rate, decays)
        if size <= BLOCK_FLOATS:
            self._update(parameters, gradient, state, self._scratch[:size])
            return
        for first in range(0, size, BLOCK_FLOATS):
            block = slice(first, min(first + BLOCK_FLOATS, size))
            part = parameters[block]
            self._update(part, gradient[block], [vector[block] for vector in state], self._scratch[: len(part)])

    def _begin(self, step: int, learning_rate: float, decays: bool) -> None:
        """Sets the numbers that depend on the step, each computed in float64 and rounded once."""
        self._rate[()] = learning_rate

    def _number(self, value: float) -> Array:
        return np.array(value, self._dtype)

    @abstractmethod
    def _update(self, w: Array, g: Array, state: Sequence[Array], t: Array) -> None:
        """One update of a block; `t` is scratch of its length."""


@final
class Sgd(Optimizer):
    """w -= rate * g (Robbins and Monro 1951)."""

    def _update(self, w: Array, g: Array, state: Sequence[Array], t: Array) -> None:
        np.multiply(g, self._rate, out=g)
        np.subtract(w, g, out=w)


@final
class Momentum(Optimizer):
    """v = momentum * v + g; w -= rate * v (Polyak 1964)."""

    def __init__(self, record: MomentumRecord, dtype: DTypeLike = np.float32) -> None:
        super().__init__(record, dtype)
        self._momentum = self._number(record.momentum)

    def _update(self, w: Array, g: Array, state: Sequence[Array], t: Array) -> None:
        v = state[0]
        np.multiply(v, self._momentum, out=v)
        np.add(v, g, out=v)
        # In the gradient's place: one vector less in the cache.
        np.multiply(v, self._rate, out=g)
        np.subtract(w, g, out=w)


@final
class Nesterov(Optimizer):
    """v = momentum * v + g; w -= rate * (g + momentum * v) (Sutskever et al. 2013)."""

    def __init__(self, record: NesterovRecord, dtype: DTypeLike = np.float32) -> None:
        super().__init__(record, dtype)
        self._momentum = self._number(record.momentum)

    def _update(self, w: Array, g: Array, state: Sequence[Array], t: Array) -> None:
        v = state[0]
        np.multiply(v, self._momentum, out=v)
        np.add(v, g, out=v)
        np.multiply(v, self._momentum, out=t)
        np.add(t, g, out=t)
        np.multiply(t, self._rate, out=t)
        np.subtract(w, t, out=w)


class _Scaled(Optimizer):
    """w -= rate * g / (sqrt(s) + epsilon), with s a sum or an average of g^2."""

    def __init__(self, record: AdagradRecord | RmsPropRecord, dtype: DTypeLike = np.float32) -> None:
        super().__init__(record, dtype)
        self._epsilon = self._number(record.epsilon)

    def _move(self, w: Array, g: Array, s: Array, t: Array) -> None:
        np.sqrt(s, out=t)
        np.add(t, self._epsilon, out=t)
        np.divide(g, t, out=t)
        np.multiply(t, self._rate, out=t)
        np.subtract(w, t, out=w)


@final
class Adagrad(_Scaled):
    """s += g^2; w -= rate * g / (sqrt(s) + epsilon) (Duchi et al. 2011)."""

    def _update(self, w: Array, g: Array, state: Sequence[Array], t: Array) -> None:
        np.multiply(g, g, out=t)
        np.add(state[0], t, out=state[0])
        self._move(w, g, state[0], t)


@final
class RmsProp(_Scaled):
    """s = decay * s + (1 - decay) * g^2; w -= rate * g / (sqrt(s) + epsilon) (Hinton 2012)."""

    def __init__(self, record: RmsPropRecord, dtype: DTypeLike = np.float32) -> None:
        super().__init__(record, dtype)
        self._decay, self._rest = self._number(record.decay), self._number(1 - record.decay)

    def _update(self, w: Array, g: Array, state: Sequence[Array], t: Array) -> None:
        s = state[0]
        np.multiply(s, self._decay, out=s)
        np.multiply(g, g, out=t)
        np.multiply(t, self._rest, out=t)
        np.add(s, t, out=s)
        self._move(w, g, s, t)


class _Adaptive(Optimizer):
    """m and v are averages of g and g^2, of which m / (1 - beta1^t) and v / (1 - beta2^t) are used at step t."""

    def __init__(self, record: AdamRecord | AdamWRecord | LambRecord, dtype: DTypeLike = np.float32) -> None:
        super().__init__(record, dtype)
        self._record = record
        self._beta1, self._rest1 = self._number(record.beta1), self._number(1 - record.beta1)
        self._beta2, self._rest2 = self._number(record.beta2), self._number(1 - record.beta2)
        self._epsilon, self._correction = self._number(record.epsilon), self._number(1)

    def _begin(self, step: int, learning_rate: float, decays: bool) -> None:
        self._rate[()] = learning_rate / (1 - power(self._record.beta1, step))
        self._correction[()] = 1 / math.sqrt(1 - power(self._record.beta2, step))

    def _update(self, w: Array, g: Array, state: Sequence[Array], t: Array) -> None:
        self._direct(g, state, t)
        np.multiply(t, self._rate, out=t)
        np.subtract(w, t, out=w)

    def _direct(self, g: Array, state: Sequence[Array], t: Array) -> None:
        """t = m / (sqrt(v') + epsilon), after the averages took g in: the direction but for the correction of m."""
        m, v = state
        np.multiply(m, self._beta1, out=m)
        np.multiply(g, self._rest1, out=t)
        np.add(m, t, out=m)
        np.multiply(v, self._beta2, out=v)
        np.multiply(g, g, out=t)
        np.multiply(t, self._rest2, out=t)
        np.add(v, t, out=v)
        np.sqrt(v, out=t)
        np.multiply(t, self._correction, out=t)
        np.add(t, self._epsilon, out=t)
        np.divide(m, t, out=t)


@final
class Adam(_Adaptive):
    """w -= rate * m' / (sqrt(v') + epsilon), m' and v' the corrected averages of g and g^2 (Kingma and Ba 2015)."""


@final
class AdamW(_Adaptive):
    """w *= 1 - rate * weight_decay where it decays; then as Adam (Loshchilov and Hutter 2019)."""

    has_decay: ClassVar[bool] = True

    def __init__(self, record: AdamWRecord, dtype: DTypeLike = np.float32) -> None:
        super().__init__(record, dtype)
        self._weight_decay = record.weight_decay
        self._kept = self._number(1)

    def _begin(self, step: int, learning_rate: float, decays: bool) -> None:
        super()._begin(step, learning_rate, decays)
        self._kept[()] = 1 - learning_rate * self._weight_decay if decays else 1

    def _update(self, w: Array, g: Array, state: Sequence[Array], t: Array) -> None:
        np.multiply(w, self._kept, out=w)
        super()._update(w, g, state, t)


@final
class Lamb(_Adaptive):
    """u = m' / (sqrt(v') + epsilon) + weight_decay * w; w -= rate * trust * u (You et al. 2020, algorithm 2).

    trust = norm(w) / norm(u) of each tensor, and 1 where either norm is 0. Biases and the factors and offsets of normalization
    neither decay nor have a ratio: their trust is 1, as in the authors' own code, since the norm of a bias that begins at 0
    says nothing about its scale.

    `apply` only makes the direction: u takes the gradient's place, and the parameters stay until `move`.
    """

    has_decay: ClassVar[bool] = True

    def __init__(self, record: LambRecord, dtype: DTypeLike = np.float32) -> None:
        super().__init__(record, dtype)
        self._weight_decay = record.weight_decay
        self._decay, self._move_rate = self._number(0), self._number(0)

    def _begin(self, step: int, learning_rate: float, decays: bool) -> None:
        super()._begin(step, 1.0, decays)
        self._decay[()] = self._weight_decay if decays else 0.0

    def _update(self, w: Array, g: Array, state: Sequence[Array], t: Array) -> None:
        self._direct(g, state, t)
        np.multiply(t, self._rate, out=t)
        np.multiply(w, self._decay, out=g)
        np.add(t, g, out=g)

    def move(self, w: Array, u: Array, rate: float) -> None:
        """w -= rate * u, with the trust in the rate, on 1-D views of equal length; overwrites u."""
        self._move_rate[()] = rate
        np.multiply(u, self._move_rate, out=u)
        np.subtract(w, u, out=w)


def power(base: float, exponent: int) -> float:
    """base^exponent by repeated squaring in float64: the C library's power has other bits elsewhere."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


OPTIMIZERS: dict[type[Any], Callable[..., Optimizer]] = {
    SgdRecord: Sgd,
    MomentumRecord: Momentum,
    NesterovRecord: Nesterov,
    AdagradRecord: Adagrad,
    RmsPropRecord: RmsProp,
    AdamRecord: Adam,
    AdamWRecord: AdamW,
    LambRecord: Lamb,
}


def build_optimizer(record: OptimizerRecord, dtype: DTypeLike = np.float32) -> Optimizer:
    """The optimizer of a record."""
    return OPTIMIZERS[type(record)](record, dtype)
