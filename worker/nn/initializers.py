"""How tensors begin: drawn before the first step, in the public layout's C order, from the stream of their layer."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from worker.nn.shapes import Initial
from worker.randomness import Floats, Stream, normal, uniform

Initializer = Callable[[Stream, Initial, tuple[int, ...]], Floats]


def glorot_uniform(stream: Stream, initial: Initial, shape: tuple[int, ...]) -> Floats:
    """(2 u - 1) sqrt(6 / (inputs + outputs)), u uniform in [0, 1) (Glorot and Bengio 2010, equation 16)."""
    u = uniform(stream, math.prod(shape))
    # 2 u - 1 is exact in float32: the product alone rounds.
    np.multiply(u, np.float32(2), out=u)
    np.subtract(u, np.float32(1), out=u)
    return np.multiply(u, np.float32(math.sqrt(6 / (initial.inputs + initial.outputs))), out=u).reshape(shape)


def he_normal(stream: Stream, initial: Initial, shape: tuple[int, ...]) -> Floats:
    """z sqrt(2 / inputs), z standard normal (He et al. 2015, equation 10)."""
    z = normal(stream, math.prod(shape))
    return np.multiply(z, np.float32(math.sqrt(2 / initial.inputs)), out=z).reshape(shape)


def lecun_normal(stream: Stream, initial: Initial, shape: tuple[int, ...]) -> Floats:
    """z sqrt(1 / inputs), z standard normal (LeCun et al. 1998, equation 16)."""
    z = normal(stream, math.prod(shape))
    return np.multiply(z, np.float32(math.sqrt(1 / initial.inputs)), out=z).reshape(shape)


def orthogonal(stream: Stream, initial: Initial, shape: tuple[int, ...]) -> Floats:
    """gain Q, Q R = A, A standard normal with the last axis as its columns (Saxe et al. 2014).

    Columns are orthonormal, or rows where there are fewer of them: then A^T is taken apart. R's diagonal is made positive, so
    that Q is drawn evenly from all such matrices (Mezzadri 2007). Computed in float64 and rounded once.
    """
    columns = shape[-1]
    a = normal(stream, math.prod(shape)).reshape(-1, columns).astype(np.float64)
    wide = a.shape[0] < columns
    q, r = np.linalg.qr(a.T if wide else a)
    factors = np.copysign(np.float64(initial.value), np.diagonal(r))
    np.multiply(q, factors, out=q)
    return np.ascontiguousarray(q.T if wide else q, np.float32).reshape(shape)


def truncated_normal(stream: Stream, initial: Initial, shape: tuple[int, ...]) -> Floats:
    """z stddev, z standard normal; those beyond 2 or -2 are drawn again, in order, until none is left."""
    z = normal(stream, math.prod(shape))
    two = np.float32(2)
    beyond = np.flatnonzero(np.greater(np.abs(z), two))
    while len(beyond):
        again = normal(stream, len(beyond))
        z[beyond] = again
        beyond = beyond[np.greater(np.abs(again), two)]
    return np.multiply(z, np.float32(initial.value), out=z).reshape(shape)


def constant(stream: Stream, initial: Initial, shape: tuple[int, ...]) -> Floats:
    """The same number everywhere; nothing is drawn."""
    return np.full(shape, initial.value, np.float32)


INITIALIZERS: dict[str, Initializer] = {
    "glorot_uniform": glorot_uniform,
    "he_normal": he_normal,
    "lecun_normal": lecun_normal,
    "orthogonal": orthogonal,
    "truncated_normal": truncated_normal,
    "zeros": constant,
    "constant": constant,
}
