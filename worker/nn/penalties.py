"""Penalties on the size of the weights, as they enter the gradient."""

from __future__ import annotations

import numpy as np

from worker.nn.parameters import Array


def add_penalties(weights: Array, gradient: Array, l1: float, l2: float, scratch: Array) -> None:
    """gradient += l2 * w + l1 * sign(w), elementwise on 1-D views of equal length; sign(0) is 0."""
    if l2:
        np.multiply(weights, weights.dtype.type(l2), out=scratch)
        np.add(gradient, scratch, out=gradient)
    if l1:
        np.sign(weights, out=scratch)
        np.multiply(scratch, weights.dtype.type(l1), out=scratch)
        np.add(gradient, scratch, out=gradient)


def penalty(weights: Array, l1: float, l2: float) -> float:
    """l1 * sum of |w| + l2 / 2 * sum of w^2, in float64: what `add_penalties` is the gradient of."""
    wide = weights.astype(np.float64)
    return float(l1 * np.add.reduce(np.abs(wide)) + l2 / 2 * np.add.reduce(wide * wide))
