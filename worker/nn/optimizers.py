"""The optimizers: elementwise updates of flat float32 vectors, in place, in blocks that stay in cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import DTypeLike

from lockstep.contract.errors import InternalError
from worker.nn.parameters import Array, aligned_zeros
from worker.nn.shapes import BLOCK_FLOATS
from worker.specs import MomentumRecord, OptimizerRecord, SgdRecord


class Optimizer(ABC):
    """Moves parameters against the mean gradient. What it remembers lies in the state vectors that it is given.

    `state_names` are the names of those vectors; each is as long as the parameters and begins as zeros.
    """

    state_names: ClassVar[tuple[str, ...]]

    def __init__(self, dtype: DTypeLike = np.float32) -> None:
        self._dtype = np.dtype(dtype)
        self._scratch = aligned_zeros((0,), self._dtype)
        # 0-d arrays: cheaper to pass than Python numbers.
        self._rate = np.array(0, self._dtype)

    def apply(self, parameters: Array, gradient: Array, state: Sequence[Array], step: int, learning_rate: float) -> None:
        """One update of 1-D views of equal length: the parameters and the state, in place; the gradient stays.

        The gradient is the mean, after the division by the denominator. `step` counts from 1. Any cut of a vector into
        views gives the same bits.
        """
        if len(state) != len(self.state_names):
            raise InternalError(f"{type(self).__name__} got {len(state)} state vectors; it needs {len(self.state_names)}")
        size = len(parameters)
        if len(self._scratch) < min(size, BLOCK_FLOATS):
            self._scratch = aligned_zeros((min(size, BLOCK_FLOATS),), self._dtype)
        self._rate[...] = learning_rate
        if size <= BLOCK_FLOATS:
            self._update(parameters, gradient, state, self._scratch[:size])
            return
        for first in range(0, size, BLOCK_FLOATS):
            block = slice(first, min(first + BLOCK_FLOATS, size))
            part = parameters[block]
            self._update(part, gradient[block], [vector[block] for vector in state], self._scratch[: len(part)])

    @abstractmethod
    def _update(self, w: Array, g: Array, state: Sequence[Array], t: Array) -> None:
        """One update of a block; `t` is scratch of its length."""


@final
class Sgd(Optimizer):
    """w -= rate * g (Robbins and Monro 1951)."""

    state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, record: SgdRecord, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype)

    def _update(self, w: Array, g: Array, state: Sequence[Array], t: Array) -> None:
        np.multiply(g, self._rate, out=t)
        np.subtract(w, t, out=w)


@final
class Momentum(Optimizer):
    """v = momentum * v + g; w -= rate * v (Polyak 1964)."""

    state_names: ClassVar[tuple[str, ...]] = ("velocity",)

    def __init__(self, record: MomentumRecord, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype)
        self._momentum = np.array(record.momentum, self._dtype)

    def _update(self, w: Array, g: Array, state: Sequence[Array], t: Array) -> None:
        v = state[0]
        np.multiply(v, self._momentum, out=v)
        np.add(v, g, out=v)
        np.multiply(v, self._rate, out=t)
        np.subtract(w, t, out=w)


OPTIMIZERS: dict[type[Any], Callable[..., Optimizer]] = {SgdRecord: Sgd, MomentumRecord: Momentum}


def build_optimizer(record: OptimizerRecord, dtype: DTypeLike = np.float32) -> Optimizer:
    """The optimizer of a record."""
    return OPTIMIZERS[type(record)](record, dtype)
