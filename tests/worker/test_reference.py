"""Lockstep == its reference: plain NumPy after docs/determinism.md gives the same weights, bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from lockstep.contract.arithmetic import shard_rows
from tests.worker.nn.networks import CROSS_ENTROPY, dense_net
from tests.worker.reference_digits import train
from worker.collective.tree import fold, owned_shards, subtrees
from worker.data.standardize import Standardization, fit_standardize
from worker.nn.model import Model
from worker.nn.optimizers import build_optimizer
from worker.nn.parameters import Array
from worker.randomness import epoch_order, validation_split
from worker.specs import ConstantSchedule, MomentumRecord

DIGITS = Path(__file__).parents[2] / "examples" / "digits.npz"


def ours(units: tuple[int, ...], epochs: int, batch: int, shards: int, seed: int, standardize: bool, workers: int) -> str:
    """The same job by our own model, optimizer and tree, `workers` models taking turns in one process."""
    with np.load(DIGITS) as arrays:
        x, y = arrays["x"].astype(np.float32), arrays["y"].astype(np.int64)
    rows, _ = validation_split(seed, len(x), 0.2)
    if standardize:
        Standardization(*fit_standardize(x, rows)).apply(x)
    models = [Model(dense_net(units, inputs=(64,)), CROSS_ENTROPY, seed=seed)]
    models += [
        Model(dense_net(units, inputs=(64,)), CROSS_ENTROPY, parameters=models[0].parameters) for _ in range(workers - 1)
    ]
    optimizer = build_optimizer(MomentumRecord(0.05, 0.9, ConstantSchedule()))
    velocity = np.zeros_like(models[0].parameters)
    step = 0
    for epoch in range(epochs):
        order = rows[epoch_order(seed, epoch, len(rows))]
        for first in range(0, len(order), batch):
            taken, step = order[first : first + batch], step + 1
            ranges = [part for part in shard_rows(len(taken), shards) if part[0] < part[1]]
            sums: dict[tuple[int, int], Array] = {}
            for rank, model in enumerate(models):
                lo, hi = owned_shards(rank, workers, shards)
                mine = [taken[a:b] for a, b in ranges[lo:hi]]
                if not mine:
                    continue
                sizes = sorted({len(part) for part in mine}, reverse=True)
                at = [np.array([part for part in mine if len(part) == size]) for size in sizes]
                nodes = [node for node in subtrees(0, shards, lo, hi) if node[0] < len(ranges)]
                model.loss_and_gradient([(x[rows_SR], y[rows_SR]) for rows_SR in at], tuple((a - lo, b - lo) for a, b in nodes))
                sums.update({node: model.gradients[row].copy() for row, node in enumerate(nodes)})
            total = fold(0, shards, lambda a, b, sums=sums: sums.get((a, b)), np.add)  # type: ignore[misc]
            assert total is not None
            optimizer.apply(models[0].parameters, total / np.float32(len(taken)), (velocity,), step, 0.05)
    digest = hashlib.sha256()
    for _, tensor in sorted(models[0].named_parameters().items()):
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("units", "epochs", "batch", "shards", "seed", "standardize"),
    [
        ((128, 10), 20, 128, 4, 7, True),  # examples/digits.yaml
        ((128, 10), 2, 128, 4, 8, False),
        ((300, 33, 10), 1, 100, 7, 2**63, True),  # uneven shards, two rectifiers, several blocks of initial weights
        ((17, 10), 2, 719, 8, 0, True),  # the last batch has fewer rows than shards
    ],
)
def test_the_reference_has_our_hash(
    units: tuple[int, ...], epochs: int, batch: int, shards: int, seed: int, standardize: bool
) -> None:
    with threadpool_limits(limits=1, user_api="blas"):
        expected = train(str(DIGITS), units, epochs, batch, shards, 0.05, 0.9, seed, 0.2, standardize)
        for workers in (1, 2, 3):
            assert ours(units, epochs, batch, shards, seed, standardize, workers) == expected


def test_another_seed_has_another_hash() -> None:
    with threadpool_limits(limits=1, user_api="blas"):
        assert ours((16, 10), 1, 128, 4, 1, True, 1) != ours((16, 10), 1, 128, 4, 2, True, 1)
