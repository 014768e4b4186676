"""The arithmetic of the simulated workers: a step is a pure function of state, step and seed, and chaotic: whatever differs
once, in one bit or in the order of a sum, differs ever after.

The state is flat vectors (P,) as the engine has them. A shard's gradient is a hash of the parameters, so that the wrong state
shows; shards are summed in float32 along the tree, so that the wrong order shows; the update reads the velocity, the learning
rate, which reduce-on-plateau moves, and the number of steps that were applied.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import final

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from coordinator.sharding import Rows
from tests.faults.simulation.job import Job
from worker.collective.layout import ExchangeLayout, block_borders
from worker.collective.tree import Subtree, fold
from worker.nn.metrics import Sums
from worker.nn.schedules import learning_rate

F32 = NDArray[np.float32]


@final
class Arithmetic:
    """Of one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        entries = job.layout.entries
        self.size: int = job.layout.size
        self.borders = block_borders([(entry.offset, entry.offset + entry.size) for entry in entries], self.size)
        learned = np.zeros(self.size, np.float32)
        for entry in entries:  # what lies between tensors stays zero, as a checkpoint does not hold it
            learned[entry.offset : entry.offset + entry.size] = 1 + entry.layer
        self._learned = learned
        self._rows = Rows(job.training_rows, job.batch_size, job.order.plan.steps_per_epoch)

    def initial(self) -> F32:
        """The parameters before the first step."""
        return self._hashed(b"initial", 0, 0)

    def exchange(self, nodes: tuple[str, ...]) -> ExchangeLayout:
        """Who owns what in a group on these nodes."""
        return ExchangeLayout(self.borders, self.job.shards, nodes)

    def rows_of(self, step: int) -> int:
        """Rows of a step's batch."""
        return self._rows.between(step - 1, step)

    def shard_rows(self, step: int, first: int, end: int) -> int:
        """Rows of a step's batch that the shards [first, end) have."""
        rows, more = divmod(self.rows_of(step), self.job.shards)
        return sum(rows + (shard < more) for shard in range(first, end))

    def subtree_sum(self, parameters: F32, step: int, subtree: Subtree) -> F32:
        """The sum of a subtree's gradients; its first shard has rows."""
        filled = min(self.job.shards, self.rows_of(step))
        data = parameters.tobytes()

        def leaf(first: int, end: int) -> F32 | None:
            return self._hashed(data, step, first) if end - first == 1 and first < filled else None

        summed = fold(*subtree, leaf, _plus)
        assert summed is not None
        return summed

    def gradient(self, sums: Mapping[Subtree, F32], step: int) -> F32:
        """What the sums of the subtrees give in all."""
        total = fold(0, self.job.shards, lambda first, end: sums.get((first, end)), _plus)
        assert total is not None
        return total / np.float32(self.rows_of(step))

    def rate(self, step: int, factor: float) -> float:
        """The learning rate of a step."""
        return learning_rate(self.job.optimizer, step, self.job.order.plan.steps_per_epoch, self.job.total_steps, factor)

    def update(self, parameters: F32, velocity: F32, gradient: F32, rate: float, step: int, applied: int) -> None:
        """Updates equal ranges of the vectors in place; `applied` steps were before this one."""
        velocity *= np.float32(0.5)
        velocity += gradient
        if step in self.job.overflows:
            velocity[:1] = np.inf
        parameters -= np.float32(rate * (1 + 1 / (1 + applied))) * velocity

    def loss(self, parameters: F32, step: int) -> float:
        """The training loss at a step."""
        return _unit(parameters.tobytes(), b"loss", step, 0)

    def block(self, parameters: F32, block: int) -> Sums:
        """What a block of validation rows gives: losses that mostly fall, and sometimes do not."""
        loss = 256 * _unit(parameters.tobytes(), b"block", 0, block)
        return Sums(rows=256, loss_sum=loss, denominator=256.0, numbers=256, squared_error_sum=loss, absolute_error_sum=loss)

    def _hashed(self, data: bytes, step: int, shard: int) -> F32:
        digest = hashlib.blake2b(data, key=struct.pack("!QQQ", self.job.seed, step, shard)).digest()
        words = np.frombuffer(digest, np.uint32).astype(np.float32) * np.float32(2.0**-31) - np.float32(1)
        return np.resize(words, self.size) * self._learned + np.float32(0)  # no -0.0, which a checkpoint would not give back


def crc32c(vector: F32) -> int:
    """As workers say it of their parameters."""
    return int(google_crc32c.value(vector.tobytes()))


def _plus(left: F32, right: F32) -> F32:
    return left + right


def _unit(data: bytes, word: bytes, step: int, number: int) -> float:
    digest = hashlib.blake2b(data + word, key=struct.pack("!QQ", step, number), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32
