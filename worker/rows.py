"""The rows of a worker: which rows a step's batch has, how they are cut into shards, and the worker's shards as stacks."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lockstep.contract.arithmetic import filled_shards, shard_rows
from worker.collective.tree import Subtree, subtrees
from worker.data.columns import Columns
from worker.data.standardize import Standardization
from worker.randomness import epoch_order

Rows = NDArray[np.int64]
Stack = tuple[NDArray[np.float32], NDArray[Any]]


@final
class RowSource:
    """Gathers rows of the columns into buffers, standardized where the job says so."""

    def __init__(self, columns: Columns, standardization: Standardization | None) -> None:
        self._x, self._y, self._standardization = columns.x, columns.y, standardization

    def buffers(self, *lead: int) -> Stack:
        """Room for rows: x (*lead, *input_shape), y (*lead, *target)."""
        return np.zeros((*lead, *self._x.shape[1:]), np.float32), np.zeros((*lead, *self._y.shape[1:]), self._y.dtype)

    def gather(self, rows: Rows, x: NDArray[np.float32], y: NDArray[Any]) -> None:
        """Fills x (R, *input_shape) and y (R, *target) with `rows`, which must be rows of the dataset; allocates nothing."""
        self._x.take(rows, axis=0, out=x, mode="clip")  # with the default mode `out` would be buffered
        self._y.take(rows, axis=0, out=y, mode="clip")
        if self._standardization is not None:
            self._standardization.apply(x)


@final
class ShardStacks:
    """This worker's shards of batches of `rows` rows: at most two stacks of equal shards, and the subtrees over them.

    Each shard gets `least_rows` rows at least, in a batch that has as many.

    `filled` is how many shards of the whole batch have rows; `combine` are the subtrees, counted from the first own shard.
    """

    def __init__(self, source: RowSource, rows: int, shards: int, owned: Subtree, least_rows: int = 1) -> None:
        self._source, self._first_shard = source, owned[0]
        self._ranges = shard_rows(rows, shards, least_rows)
        self.rows, self.filled = rows, filled_shards(rows, shards, least_rows)
        lo, hi = owned[0], min(owned[1], self.filled)
        self.own_rows = self._ranges[hi - 1][1] - self._ranges[lo][0] if lo < hi else 0
        self.combine = tuple((a - lo, b - lo) for a, b in subtrees(0, shards, *owned) if a < self.filled)
        stacks: list[Stack] = []
        # (range of the batch, x and y with one axis of rows)
        self._targets: list[tuple[slice, NDArray[np.float32], NDArray[Any]]] = []
        while lo < hi:
            first, end = self._ranges[lo]
            equal = lo
            while equal < hi and self._ranges[equal][1] - self._ranges[equal][0] == end - first:
                equal += 1
            x, y = source.buffers(equal - lo, end - first)
            stacks.append((x, y))
            batch = slice(first, self._ranges[equal - 1][1])
            count = batch.stop - batch.start
            self._targets.append((batch, x.reshape(count, *x.shape[2:]), y.reshape(count, *y.shape[2:])))
            lo = equal
        self.stacks = tuple(stacks)

    def fill(self, batch: Rows) -> None:
        """Gathers this worker's part of the batch."""
        for part, x, y in self._targets:
            self._source.gather(batch[part], x, y)

    def shard_of(self, own_shard: int, batch: Rows) -> tuple[int, Rows]:
        """(number in the batch, rows in the dataset) of the `own_shard`-th of this worker's shards."""
        shard = self._first_shard + own_shard
        return shard, batch[slice(*self._ranges[shard])]


@final
class TrainingRows:
    """The batches of a job, step by step: step t takes the next `batch_size` rows of its epoch's order; the last is short."""

    def __init__(
        self,
        source: RowSource,
        training_rows: Rows,
        *,
        seed: int,
        batch_size: int,
        shards: int,
        owned: Subtree,
        least_rows: int = 1,
    ) -> None:
        self._source, self._rows, self._seed, self._shards, self._owned = source, training_rows, seed, shards, owned
        self._least_rows = least_rows
        self._batch_size = min(batch_size, len(training_rows))
        self.steps_per_epoch = -(-len(training_rows) // self._batch_size)
        self._epoch = -1
        self._order: Rows = training_rows
        self._stacks: dict[int, ShardStacks] = {}

    def batch(self, step: int) -> Rows:
        """The rows of the dataset that step `step` (from 1) takes, a view. A new epoch's order is computed here."""
        epoch, number = divmod(step - 1, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = self._rows[epoch_order(self._seed, epoch, len(self._rows))]
            self._epoch = epoch
        return self._order[number * self._batch_size : (number + 1) * self._batch_size]

    def stacks(self, rows: int) -> ShardStacks:
        """The stacks for batches of `rows` rows; made at the first use of each of the two sizes."""
        stacks = self._stacks.get(rows)
        if stacks is None:
            stacks = self._stacks[rows] = ShardStacks(self._source, rows, self._shards, self._owned, self._least_rows)
        return stacks
