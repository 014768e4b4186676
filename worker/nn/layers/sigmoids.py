"""The sigmoid and what is made of it: tanh, SiLU and softplus."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from worker.nn.layers.elementwise import Elementwise
from worker.nn.layers.layer import Setting
from worker.nn.parameters import Array


class _OfSigmoid(Elementwise):
    """Computes s(x) = tanh(x / 2) / 2 + 1 / 2, which cannot overflow."""

    def __init__(self, record: Any, setting: Setting) -> None:
        super().__init__(record, setting)
        self.half, self.one = self.number(0.5), self.number(1)

    def sigmoid(self, x: Array, out: Array) -> None:
        np.multiply(x, self.half, out=out)
        np.tanh(out, out=out)
        np.multiply(out, self.half, out=out)
        np.add(out, self.half, out=out)


@final
class Sigmoid(_OfSigmoid):
    """y = 1 / (1 + exp(-x)). f' = y - y^2."""

    def compute(self, x: Array, y: Array, derivative: Array, t: Array, u: Array) -> None:
        self.sigmoid(x, y)
        np.multiply(y, y, out=derivative)
        np.subtract(y, derivative, out=derivative)


@final
class Tanh(_OfSigmoid):
    """y = tanh(x). f' = 1 - y^2."""

    def compute(self, x: Array, y: Array, derivative: Array, t: Array, u: Array) -> None:
        np.tanh(x, out=y)
        np.multiply(y, y, out=derivative)
        np.subtract(self.one, derivative, out=derivative)


@final
class Silu(_OfSigmoid):
    """y = x s(x) (Elfwing et al. 2018). f' = s + y (1 - s)."""

    def compute(self, x: Array, y: Array, derivative: Array, t: Array, u: Array) -> None:
        self.sigmoid(x, t)
        np.multiply(x, t, out=y)
        np.subtract(self.one, t, out=u)
        np.multiply(y, u, out=u)
        np.add(t, u, out=derivative)


@final
class Softplus(_OfSigmoid):
    """y = log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)), which cannot overflow (Dugas et al. 2001). f' = s(x)."""

    def compute(self, x: Array, y: Array, derivative: Array, t: Array, u: Array) -> None:
        np.maximum(x, self.zeros[: len(x)], out=y)
        np.abs(x, out=t)
        np.negative(t, out=t)
        np.exp(t, out=t)
        np.add(t, self.one, out=t)
        np.log(t, out=t)
        np.add(y, t, out=y)
        self.sigmoid(x, derivative)
