"""The Gaussian error linear unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import numpy as np

from worker.nn.layers.elementwise import Elementwise
from worker.nn.layers.layer import Setting
from worker.nn.parameters import Array
from worker.specs import GeluRecord

# Cody's rational approximations (1969). exp(y^2) erfc(y) = P(y) / Q(y), coefficients from y^8 down, is that for 0.46875 to 4.
# Below, it still gives erfc(y) to 1e-10, which float32 does not see; above, exp(-y^2) is below 2e-7 and falls.
P = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594e0,
    6.61191906371416295e1,
    2.98635138197400131e2,
    8.81952221241769090e2,
    1.71204761263407058e3,
    2.05107837782607147e3,
    1.23033935479799725e3,
)
Q = (
    1.0,
    1.57449261107098347e1,
    1.17693950891312499e2,
    5.37181101862009858e2,
    1.62138957456669019e3,
    3.29079923573345963e3,
    4.36261909014324716e3,
    3.43936767414372164e3,
    1.23033935480374942e3,
)

# erf(y) = y A(y^2) / B(y^2) up to NEAR, coefficients from y^8 down: for float64.
A = (
    1.85777706184603153e-1,
    3.16112374387056560e0,
    1.13864154151050156e2,
    3.77485237685302021e2,
    3.20937758913846947e3,
)
B = (
    1.0,
    2.36012909523441209e1,
    2.44024637934444173e2,
    1.28261652607737228e3,
    2.84423683343917062e3,
)
NEAR = 0.46875


@final
class Gelu(Elementwise):
    """y = x Phi(x), Phi the standard normal distribution and phi its density (Hendrycks and Gimpel 2016).

    Exact: Phi(x) = erfc(-x / sqrt 2) / 2 by rational approximations; f' = Phi + x phi. Else, with
    v = tanh(sqrt(2 / pi) (x + 0.044715 x^3)): y = x (1 + v) / 2.
    """

    def __init__(self, record: GeluRecord, setting: Setting) -> None:
        super().__init__(record, setting)
        self.exact = record.exact
        self.p, self.q = [self.number(c) for c in P], [self.number(c) for c in Q]
        self.zero, self.half, self.one = self.number(0), self.number(0.5), self.number(1)
        self.root_half = self.number(math.sqrt(0.5))
        self.density = self.number(1 / math.sqrt(2 * math.pi))
        self.scale, self.cubic = self.number(math.sqrt(2 / math.pi)), self.number(0.044715)
        self.slope = self.number(3 * 0.044715)
        # Beyond it Phi is 0 or 1 to the last bit, and the polynomials stay finite.
        self.limit = setting.memory.constant((len(self.zeros),), 40)
        self.double = self.exact and setting.dtype == np.float64
        if self.double:
            self.a, self.b = [self.number(c) for c in A], [self.number(c) for c in B]
            self.near_square, self.near = self.number(NEAR**2), self.number(NEAR * math.sqrt(2))
            self.near_scratch = setting.memory.forward_scratch((3, len(self.zeros)))
            self.is_near = setting.memory.forward_scratch((len(self.zeros),), np.dtype(bool))

    def compute(self, x: Array, y: Array, derivative: Array, t: Array, u: Array) -> None:
        if self.exact:
            self._exact(x, y, derivative, t, u)
        else:
            self._by_tanh(x, y, derivative, t, u)

    def _exact(self, x: Array, y: Array, derivative: Array, t: Array, u: Array) -> None:
        np.abs(x, out=t)
        np.minimum(t, self.limit[: len(x)], out=t)
        np.multiply(t, self.root_half, out=t)
        _polynomial(self.p, t, u)
        _polynomial(self.q, t, y)
        np.divide(u, y, out=u)
        np.multiply(t, t, out=t)
        np.negative(t, out=t)
        np.exp(t, out=t)
        # u = Phi(-|x|); above zero Phi(x) = 1 - u, so that u turns around 1/2 with the sign of x.
        np.multiply(u, t, out=u)
        np.multiply(u, self.half, out=u)
        np.subtract(self.half, u, out=u)
        np.copysign(u, x, out=u)
        np.add(u, self.half, out=u)
        if self.double:
            self._near(x, u)
        np.multiply(x, u, out=y)
        np.multiply(t, self.density, out=t)
        np.multiply(t, x, out=t)
        np.add(u, t, out=derivative)

    def _near(self, x: Array, phi: Array) -> None:
        """Phi(x) = (1 + erf(x / sqrt 2)) / 2 where x is near 0."""
        square, a, b = self.near_scratch[:, : len(x)]
        is_near = self.is_near[: len(x)]
        np.abs(x, out=a)
        np.less_equal(a, self.near, out=is_near)
        np.multiply(x, self.root_half, out=square)
        np.multiply(square, square, out=square)
        # Where it is not near, any number will do that does not overflow.
        np.minimum(square, self.near_square, out=square)
        _polynomial(self.a, square, a)
        _polynomial(self.b, square, b)
        np.divide(a, b, out=a)
        np.multiply(a, x, out=a)
        np.multiply(a, self.root_half, out=a)
        np.multiply(a, self.half, out=a)
        np.add(a, self.half, out=a)
        np.copyto(phi, a, where=is_near)

    def _by_tanh(self, x: Array, y: Array, derivative: Array, t: Array, u: Array) -> None:
        np.multiply(x, x, out=t)
        np.multiply(t, self.cubic, out=u)
        np.add(u, self.one, out=u)
        np.multiply(u, x, out=u)
        np.multiply(u, self.scale, out=u)
        np.tanh(u, out=u)
        # The derivative of what stands in the tanh, times x (1 - v^2) / 2.
        np.multiply(t, self.slope, out=t)
        np.add(t, self.one, out=t)
        np.multiply(t, self.scale, out=t)
        np.multiply(u, u, out=derivative)
        np.subtract(self.one, derivative, out=derivative)
        np.multiply(derivative, t, out=derivative)
        np.multiply(derivative, x, out=derivative)
        np.multiply(derivative, self.half, out=derivative)
        np.multiply(u, self.half, out=u)
        np.add(u, self.half, out=u)
        np.multiply(x, u, out=y)
        np.add(derivative, u, out=derivative)


def _polynomial(coefficients: Sequence[Array], x: Array, out: Array) -> None:
    """By Horner's rule, the coefficient of the highest power first."""
    np.multiply(x, coefficients[0], out=out)
    for coefficient in coefficients[1:-1]:
        np.add(out, coefficient, out=out)
        np.multiply(out, x, out=out)
    np.add(out, coefficients[-1], out=out)
