"""How weights are drawn before the first step, in the public layout's C order."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from worker.randomness import Floats, Stream, normal, uniform


def glorot_uniform(stream: Stream, inputs: int, outputs: int, count: int) -> Floats:
    """(2 u - 1) sqrt(6 / (inputs + outputs)), u uniform in [0, 1) (Glorot and Bengio 2010, equation 16)."""
    u = uniform(stream, count)
    # 2 u - 1 is exact in float32: the product alone rounds.
    np.multiply(u, np.float32(2), out=u)
    np.subtract(u, np.float32(1), out=u)
    return np.multiply(u, np.float32(math.sqrt(6 / (inputs + outputs))), out=u)


def he_normal(stream: Stream, inputs: int, outputs: int, count: int) -> Floats:
    """z sqrt(2 / inputs), z standard normal (He et al. 2015, equation 10)."""
    z = normal(stream, count)
    return np.multiply(z, np.float32(math.sqrt(2 / inputs)), out=z)


def lecun_normal(stream: Stream, inputs: int, outputs: int, count: int) -> Floats:
    """z sqrt(1 / inputs), z standard normal (LeCun et al. 1998, equation 16)."""
    z = normal(stream, count)
    return np.multiply(z, np.float32(math.sqrt(1 / inputs)), out=z)


def zeros(stream: Stream, inputs: int, outputs: int, count: int) -> Floats:
    """0."""
    return np.zeros(count, np.float32)


INITIALIZERS: dict[str, Callable[[Stream, int, int, int], Floats]] = {
    "glorot_uniform": glorot_uniform,
    "he_normal": he_normal,
    "lecun_normal": lecun_normal,
    "zeros": zeros,
}
