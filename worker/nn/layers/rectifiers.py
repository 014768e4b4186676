"""Rectifiers with something left below zero: leaky ReLU and ELU."""

from __future__ import annotations

from typing import final

import numpy as np

from worker.nn.layers.elementwise import Elementwise
from worker.nn.layers.layer import Setting
from worker.nn.parameters import Array
from worker.specs import EluRecord, LeakyReluRecord


@final
class LeakyRelu(Elementwise):
    """y = max(x, 0) + slope min(x, 0) (Maas et al. 2013). f' = 1 above zero, else slope."""

    def __init__(self, record: LeakyReluRecord, setting: Setting) -> None:
        super().__init__(record, setting)
        self.slope, self.rest = self.number(record.slope), self.number(1 - record.slope)

    def compute(self, x: Array, y: Array, derivative: Array, t: Array, u: Array) -> None:
        zeros = self.zeros[: len(x)]
        np.maximum(x, zeros, out=y)
        np.minimum(x, zeros, out=t)
        np.multiply(t, self.slope, out=t)
        np.add(y, t, out=y)
        np.greater(x, zeros, out=derivative)
        np.multiply(derivative, self.rest, out=derivative)
        np.add(derivative, self.slope, out=derivative)


@final
class Elu(Elementwise):
    """y = max(x, 0) + alpha (exp(min(x, 0)) - 1) (Clevert et al. 2016). f' = 1 above zero, else alpha exp(x)."""

    def __init__(self, record: EluRecord, setting: Setting) -> None:
        super().__init__(record, setting)
        self.alpha, self.rest, self.one = self.number(record.alpha), self.number(1 - record.alpha), self.number(1)

    def compute(self, x: Array, y: Array, derivative: Array, t: Array, u: Array) -> None:
        zeros = self.zeros[: len(x)]
        np.minimum(x, zeros, out=t)
        np.exp(t, out=t)
        np.maximum(x, zeros, out=y)
        np.subtract(t, self.one, out=u)
        np.multiply(u, self.alpha, out=u)
        np.add(y, u, out=y)
        # exp(min(x, 0)) is 1 above zero: there alpha and the rest make 1.
        np.greater(x, zeros, out=derivative)
        np.multiply(derivative, self.rest, out=derivative)
        np.multiply(t, self.alpha, out=t)
        np.add(derivative, t, out=derivative)
