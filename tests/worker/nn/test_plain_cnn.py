"""A convolutional network written out in loops and sums, trained beside ours in float64: the same tensors after 20 steps."""

from __future__ import annotations

from itertools import product
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.worker.nn.zoo import CLASSES, RELU, SAME, TWO, Animal
from worker.nn.optimizers import build_optimizer
from worker.nn.update import Update
from worker.specs import AdamRecord, ConstantSchedule, MomentumRecord, OptimizerRecord, PenaltyRecord

F64: TypeAlias = NDArray[np.float64]
Tensors: TypeAlias = dict[str, F64]

EPSILON, KEEP, CLASS_COUNT = 1e-3, 0.5, 3
THREE = {"height": 3, "width": 3}


def block(filters: int) -> list[Any]:
    norm = {"batch_norm": {"momentum": KEEP, "epsilon": EPSILON}}
    # A bias before the normalization would have no gradient but noise, which Adam would make large.
    conv = {"conv2d": {"filters": filters, "kernel": THREE, "bias": False, **SAME}}
    return [conv, norm, RELU, {"max_pool": {"window": TWO}}]


NETWORK = Animal((8, 8, 2), [*block(4), *block(5), {"flatten": {}}, {"dense": {"units": CLASS_COUNT}}], CLASSES)


def convolved(x: F64, w: F64) -> F64:
    """x (R, H, W, C) and w (3, 3, C, O): y (R, H, W, O), zeros around x."""
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((*x.shape[:3], w.shape[3]))
    for a, b in product(range(3), range(3)):
        y += np.einsum("rijc,co->rijo", padded[:, a : a + height, b : b + width], w[a, b])
    return y


def convolved_backward(x: F64, w: F64, dy: F64) -> tuple[F64, F64]:
    """(dx, dw)."""
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    dpadded, dw = np.zeros_like(padded), np.zeros_like(w)
    for a, b in product(range(3), range(3)):
        dw[a, b] = np.einsum("rijc,rijo->co", padded[:, a : a + height, b : b + width], dy)
        dpadded[:, a : a + height, b : b + width] += np.einsum("rijo,co->rijc", dy, w[a, b])
    return dpadded[:, 1:-1, 1:-1], dw


def pooled(x: F64) -> tuple[F64, NDArray[np.intp]]:
    """The maximum of each 2 by 2 window of x (R, H, W, C), and which of its four numbers it is, row after row."""
    rows, height, width, channels = x.shape
    windows = x.reshape(rows, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4)
    best = windows.argmax(axis=1)
    return windows.max(axis=1).reshape(rows, height // 2, width // 2, channels), best


def pooled_backward(dy: F64, best: NDArray[np.intp]) -> F64:
    rows, height, width, channels = dy.shape
    windows = np.zeros((dy.size, 4))
    windows[np.arange(dy.size), best] = dy.ravel()
    spread = windows.reshape(rows, height, width, channels, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return spread.reshape(rows, 2 * height, 2 * width, channels)


def outputs(t: Tensors, x: F64) -> F64:
    """Evaluation: z (R, K), by the running statistics."""
    for first in (0, 4):
        norm = f"{first + 1}.batch_norm"
        y = convolved(x, t[f"{first}.conv2d.weight"])
        y = (y - t[f"{norm}.running_mean"]) / np.sqrt(t[f"{norm}.running_variance"] + EPSILON)
        x, _ = pooled(np.maximum(y * t[f"{norm}.scale"] + t[f"{norm}.shift"], 0))
    return x.reshape(len(x), -1) @ t["9.dense.weight"] + t["9.dense.bias"]


def shard_sums(t: Tensors, x: F64, y: NDArray[np.int64]) -> tuple[Tensors, float]:
    """Sums over the rows of one shard, gradients and statistics by the name of their tensor, and the loss."""
    sums: Tensors = {}
    kept = []
    rows = len(x)
    for first in (0, 4):
        norm = f"{first + 1}.batch_norm"
        a = convolved(x, t[f"{first}.conv2d.weight"])
        numbers = a[..., 0].size
        mean, variance = a.mean(axis=(0, 1, 2)), a.var(axis=(0, 1, 2))
        sums[f"{norm}.running_mean"] = rows * mean
        sums[f"{norm}.running_variance"] = rows * variance * numbers / (numbers - 1)
        r = 1 / np.sqrt(variance + EPSILON)
        normal = (a - mean) * r
        b = normal * t[f"{norm}.scale"] + t[f"{norm}.shift"]
        pool, best = pooled(np.maximum(b, 0))
        kept.append((first, x, normal, r, b, best, pool.shape))
        x = pool
    flat = x.reshape(rows, -1)
    z = flat @ t["9.dense.weight"] + t["9.dense.bias"]
    z -= z.max(axis=1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    loss = float(-np.log(p[np.arange(rows), y]).sum())
    d = p - np.eye(CLASS_COUNT)[y]
    sums["9.dense.weight"], sums["9.dense.bias"] = flat.T @ d, d.sum(axis=0)
    d = d @ t["9.dense.weight"].T
    for first, x, normal, r, b, best, shape in reversed(kept):
        norm = f"{first + 1}.batch_norm"
        d = pooled_backward(d.reshape(shape), best) * (b > 0)
        sums[f"{norm}.scale"], sums[f"{norm}.shift"] = (d * normal).sum(axis=(0, 1, 2)), d.sum(axis=(0, 1, 2))
        d = d * t[f"{norm}.scale"]
        d = r * (d - d.mean(axis=(0, 1, 2)) - normal * (d * normal).mean(axis=(0, 1, 2)))
        d, sums[f"{first}.conv2d.weight"] = convolved_backward(x, t[f"{first}.conv2d.weight"], d)
    return sums, loss


def move(record: OptimizerRecord, t: Tensors, g: Tensors, state: dict[str, list[F64]], step: int) -> None:
    """One step of all tensors."""
    for name, w in t.items():
        if "running" in name:
            w[...] = KEEP * w + (1 - KEEP) * g[name]
        elif isinstance(record, MomentumRecord):
            state[name][0] = record.momentum * state[name][0] + g[name]
            w -= record.learning_rate * state[name][0]
        else:
            assert isinstance(record, AdamRecord)
            m, v = state[name]
            m[...] = record.beta1 * m + (1 - record.beta1) * g[name]
            v[...] = record.beta2 * v + (1 - record.beta2) * g[name] ** 2
            corrected = m / (1 - record.beta1**step), v / (1 - record.beta2**step)
            w -= record.learning_rate * corrected[0] / (np.sqrt(corrected[1]) + record.epsilon)


@pytest.mark.parametrize(
    "record",
    [MomentumRecord(0.1, 0.9, ConstantSchedule()), AdamRecord(0.01, 0.9, 0.99, 1e-4, ConstantSchedule())],
    ids=["momentum", "adam"],
)
def test_twenty_steps_are_those_of_a_plain_network(record: OptimizerRecord) -> None:
    draw = np.random.default_rng(4)
    model = NETWORK.model(seed=9, dtype=np.float64)
    layout, learned = model.layout, model.layout.learned
    optimizer, update = build_optimizer(record, np.float64), Update(record, PenaltyRecord(0, 0), layout)
    vectors = [np.zeros(learned) for _ in record.state_names]
    t: Tensors = {name: np.array(tensor, np.float64) for name, tensor in model.named_parameters().items()}
    before = {name: tensor.copy() for name, tensor in t.items()}
    state = {name: [np.zeros_like(w) for _ in record.state_names] for name, w in t.items()}

    labels = draw.integers(0, CLASS_COUNT, 60)
    x = draw.standard_normal((60, 8, 8, 2)) + draw.standard_normal((CLASS_COUNT, 8, 8, 2))[labels]
    losses = []
    for step in range(1, 21):
        rows = draw.permutation(60)[:20]
        parts = [shard_sums(t, x[shard], labels[shard]) for shard in (rows[:7], rows[7:14], rows[14:])]
        losses.append(sum(loss for _, loss in parts) / 20)
        means = {name: np.sum([sums[name] for sums, _ in parts], axis=0) / 20 for name in t}
        move(record, t, means, state, step)

        stacks = [(x[shards], labels[shards]) for shards in (rows[:14].reshape(2, 7), rows[14:].reshape(1, 6))]
        result = model.loss_and_gradient(stacks)
        mean = model.gradients[0] / 20
        optimizer.apply(model.parameters[:learned], mean[:learned], vectors, step, record.learning_rate)
        update.apply(learned, model.parameters[learned:], mean[learned:], [], step, record.learning_rate)
        assert abs(result.loss_sum / 20 - losses[-1]) < 1e-9

    assert losses[-1] < losses[0] / 3
    for name, tensor in model.named_parameters().items():
        np.testing.assert_allclose(tensor, t[name], rtol=0, atol=1e-9, err_msg=name)
        assert np.abs(tensor - before[name]).max() > 1e-3, name
    np.testing.assert_allclose(model.predict(x), outputs(t, x), rtol=0, atol=1e-9)
