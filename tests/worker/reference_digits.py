"""A dense network on a dataset by docs/determinism.md alone: plain NumPy, a loop over shards, nothing of Lockstep's.

python tests/worker/reference_digits.py examples/digits.npz prints the weights_sha256 of examples/digits.yaml.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeAlias

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for the script; a test limits the threads itself

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
F = np.float32
ORDER, SPLIT, WEIGHTS = 1, 2, 3


def stream(seed: int, purpose: int, layer: int = 0, shard: int = 0, time: int = 0) -> np.random.Philox:
    key = np.array([seed, purpose << 32 | layer], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, shard, time, 0], np.uint64))


def uniform(words: Array) -> Array:
    return (words >> np.uint64(40)).astype(F) * F(2**-24)


def normal(philox: np.random.Philox, count: int) -> Array:
    parts = []
    for first in range(0, count, 8192):
        n = min(8192, count - first)
        h = -(-n // 2)
        u, v = uniform(philox.random_raw(h)), uniform(philox.random_raw(h))
        r = np.sqrt(np.log(F(1) - u) * F(-2))
        parts.append(np.concatenate([r * np.sin(v * F(2 * math.pi)), r * np.sin((v + F(0.25)) * F(2 * math.pi))])[:n])
    return np.concatenate(parts)


def initial(seed: int, layer: int, shape: tuple[int, ...], before_relu: bool) -> Array:
    """A layer's weights in their public shape: (inputs, outputs), or (height, width, inputs, outputs)."""
    philox, count, taps = stream(seed, WEIGHTS, layer), math.prod(shape), math.prod(shape[:-2])
    inputs, outputs = taps * shape[-2], taps * shape[-1]
    if before_relu:
        return (normal(philox, count) * F(math.sqrt(2 / inputs))).reshape(shape)
    drawn = (uniform(philox.random_raw(count)) * F(2) - F(1)) * F(math.sqrt(6 / (inputs + outputs)))
    return drawn.reshape(shape)


def training_rows(seed: int, count: int, validation_fraction: float) -> Array:
    order = np.argsort(stream(seed, SPLIT).random_raw(count), kind="stable")
    return np.sort(order[math.floor(count * Fraction(validation_fraction) + Fraction(1, 2)) :])


def epoch_order(seed: int, epoch: int, rows: Array) -> Array:
    return rows[np.argsort(stream(seed, ORDER, time=epoch).random_raw(len(rows)), kind="stable")]


def tree(first: int, end: int, leaf: Callable[[int], Any]) -> Any:
    if end - first == 1:
        return leaf(first)
    left, right = tree(first, (first + end) // 2, leaf), tree((first + end) // 2, end, leaf)
    return right if left is None else left if right is None else [a + b for a, b in zip(left, right, strict=True)]


def standardized(x: Array, rows: Array) -> Array:
    def over(
        values: Callable[[Array], Array],
    ) -> Any:  # the sum of values(block) over blocks of 4,096 training rows, along the tree
        parts = [[np.add.reduce(values(x[rows[i : i + 4096]].astype(np.float64)), axis=0)] for i in range(0, len(rows), 4096)]
        return tree(0, len(parts), parts.__getitem__)[0]

    mean = over(lambda block: block) / len(rows)
    deviation = np.sqrt(over(lambda block: (block - mean) * (block - mean)) / len(rows))
    varies = (x[rows] != x[rows[0]]).any(axis=0)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    return (x - mean.astype(F)) * scale.astype(F)


def shard_gradient(weights: list[list[Array]], x: Array, y: Array) -> list[Array]:
    """The gradient sums [dW, db, dW, db, ...] of one shard: x (R, I) rows, y (R,) labels; W (O, I)."""
    h, inputs = x.T, []
    for k, (w, b) in enumerate(weights):
        inputs.append(h)
        h = np.matmul(w, h) + b[:, None]
        h = np.maximum(h, F(0)) if k < len(weights) - 1 else h
    e = np.exp(h - np.maximum.reduce(h, axis=0))
    d = e / np.add.reduce(e, axis=0)
    d[y, np.arange(len(y))] -= F(1)
    sums = []
    for k in reversed(range(len(weights))):
        sums[:0] = [np.matmul(d, inputs[k].T), np.matmul(d, np.ones(len(y), F))]
        if k:
            d = np.where(inputs[k] > 0, np.matmul(weights[k][0].T, d), F(0))
    return sums


def train(
    path: str,
    units: tuple[int, ...],
    epochs: int,
    batch: int,
    shards: int,
    rate: float,
    momentum: float,
    seed: int,
    validation_fraction: float,
    standardize: bool,
) -> str:
    with np.load(path) as arrays:
        x, y = arrays["x"].astype(F), arrays["y"].astype(np.int64)
    rows = training_rows(seed, len(x), validation_fraction)
    x = (standardized(x, rows) if standardize else x).reshape(len(x), -1)
    sizes, last = [x.shape[1], *units], len(units) - 1
    drawn = [initial(seed, 2 * k, (sizes[k], sizes[k + 1]), k < last) for k in range(last + 1)]
    weights = [[np.ascontiguousarray(w.T), np.zeros(w.shape[1], F)] for w in drawn]
    tensors = [t for layer in weights for t in layer]
    velocity = [np.zeros_like(t) for t in tensors]
    for epoch in range(epochs):
        order = epoch_order(seed, epoch, rows)
        for step in range(0, len(rows), batch):
            taken = order[step : step + batch]
            small, larger = divmod(len(taken), shards)
            cut = [s * small + min(s, larger) for s in range(shards + 1)]

            def leaf(s: int, cut: list[int] = cut, taken: Array = taken) -> list[Array] | None:
                own = taken[cut[s] : cut[s + 1]]
                return shard_gradient(weights, np.ascontiguousarray(x[own]), y[own]) if len(own) else None

            for w, v, g in zip(tensors, velocity, tree(0, shards, leaf), strict=True):
                v[...] = v * F(momentum) + g / F(len(taken))
                w[...] = w - v * F(rate)
    names = [f"{2 * k}.dense.{name}" for k in range(last + 1) for name in ("weight", "bias")]
    digest = hashlib.sha256()
    for _, tensor in sorted(zip(names, tensors, strict=True), key=lambda pair: pair[0].encode()):
        digest.update(np.ascontiguousarray(tensor.T).astype("<f4").tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(train(sys.argv[1], (128, 10), 20, 128, 4, 0.05, 0.9, 7, 0.2, "--standardize" in sys.argv))
