"""A job by docs/determinism.md alone, one shard at a time: all but a shard's forward and backward pass is written out here.

Rows, shards, random streams, initial weights, the tree, Adam, its learning rate and the running statistics are plain NumPy.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from google.protobuf.json_format import ParseDict

from lockstep.v1.model_pb2 import ModelSpec
from tests.worker.reference_digits import Array, F, epoch_order, initial, standardized, stream, training_rows, tree
from worker.nn.model import Model
from worker.specs import SoftmaxCrossEntropyRecord, architecture

DROPOUT = 4
LEAST_ROWS = 8


@final
@dataclass(frozen=True, slots=True)
class Job:
    """A network of plain layers that classifies, Adam, and a cosine behind a warm-up. `layers` are as in a job file.

    `before_relu` are the layers whose weights are drawn for a rectifier.
    """

    layers: list[dict[str, Any]]
    before_relu: frozenset[int]
    batch: int
    shards: int
    epochs: int
    seed: int = 7
    rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-7
    floor: float = 0.1
    warmup: int = 3
    validation_fraction: float = 0.0
    standardize: bool = False

    @property
    def least_rows(self) -> int:
        """How many rows a shard must have, in a batch that has as many."""
        return LEAST_ROWS if any("batch_norm" in layer for layer in self.layers) else 1

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of step `step`, from 1."""
        if step <= self.warmup:
            return self.rate * (step / self.warmup)
        progress = (step - self.warmup - 1) / (steps - self.warmup)
        return self.rate * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2)


@final
class Words:
    """The raw words of one stream."""

    def __init__(self, philox: np.random.Philox) -> None:
        self.words = philox.random_raw


@final
class Drawn:
    """What the layers of one shard draw in one step: dropout alone."""

    def __init__(self, seed: int, step: int, shard: int) -> None:
        self.seed, self.step, self.shard = seed, step, shard

    def stream(self, purpose: int, layer: int, shard: int) -> Words:
        """The stream of a layer; the pass has one shard, of which it does not know the number."""
        assert purpose == DROPOUT and shard == 0
        return Words(stream(self.seed, DROPOUT, layer, self.shard, self.step))


def power(base: float, exponent: int) -> float:
    """Repeated squaring, from the lowest bit."""
    result = 1.0
    while exponent:
        result, base, exponent = result * base if exponent & 1 else result, base * base, exponent >> 1
    return result


def cuts(rows: int, shards: int, least_rows: int) -> list[int]:
    """Where the shards of a batch begin, and where the last ends."""
    filled = min(shards, max(1, rows // least_rows))
    small, larger = divmod(rows, filled)
    return [min(s, filled) * small + min(s, larger) for s in range(shards + 1)]


def train(job: Job, x: Array, y: Array) -> str:
    """weights_sha256 after all epochs over x (N, I) and y (N,)."""
    rows = training_rows(job.seed, len(x), job.validation_fraction)
    x = standardized(x, rows) if job.standardize else x
    parsed = ParseDict({"layers": job.layers}, ModelSpec())
    model = Model(architecture(parsed, x.shape[1:]), SoftmaxCrossEntropyRecord())  # its weights are drawn anew below
    names = sorted(model.named_parameters(), key=str.encode)
    tensors = [model.named_parameters()[name] for name in names]
    for name, w in zip(names, tensors, strict=True):
        layer, _, tensor = name.split(".")
        if tensor == "weight":
            w[...] = initial(job.seed, int(layer), w.shape, int(layer) in job.before_relu)
        else:
            w[...] = 1 if tensor in ("scale", "running_variance") else 0
    moments = [np.zeros((2, *w.shape), F) for w in tensors]

    batch = min(job.batch, len(rows))
    starts = range(0, len(rows), batch)
    step, steps = 0, job.epochs * len(starts)
    for epoch in range(job.epochs):
        order = epoch_order(job.seed, epoch, rows)
        for start in starts:
            step += 1
            taken = order[start : start + batch]
            cut = cuts(len(taken), job.shards, job.least_rows)

            def leaf(s: int, step: int = step, taken: Array = taken, cut: list[int] = cut) -> list[Array] | None:
                own = taken[cut[s] : cut[s + 1]]
                if not len(own):
                    return None
                drawn: Any = Drawn(job.seed, step, s)
                model.loss_and_gradient([(x[own][None], y[own][None])], streams=drawn)
                return [model.named_gradients()[name].copy() for name in names]

            rate = job.learning_rate(step, steps)
            for name, w, (m, v), total in zip(names, tensors, moments, tree(0, job.shards, leaf), strict=True):
                g = total / F(len(taken))
                if ".running_" in name:
                    keep = job.layers[int(name.split(".")[0])]["batch_norm"].get("momentum", 0.9)
                    w[...] = w * F(keep) + g * F(1 - keep)
                    continue
                m[...] = m * F(job.beta1) + g * F(1 - job.beta1)
                v[...] = v * F(job.beta2) + (g * g) * F(1 - job.beta2)
                root = np.sqrt(v) * F(1 / math.sqrt(1 - power(job.beta2, step))) + F(job.epsilon)
                w[...] = w - m / root * F(rate / (1 - power(job.beta1, step)))
    digest = hashlib.sha256()
    for w in tensors:
        digest.update(np.ascontiguousarray(w).astype("<f4").tobytes())
    return digest.hexdigest()
