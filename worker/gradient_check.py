"""The gradient check of a job: its model at the initial weights, on the first rows of its first mini-batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

from lockstep.internal.v1.worker_pb2 import GradientCheckReply
from lockstep.v1.training_job_pb2 import TensorGradientCheck
from worker.limits import (
    GRADIENT_CHECK_ELEMENTS,
    GRADIENT_CHECK_EVALUATIONS,
    GRADIENT_CHECK_ROWS,
    GRADIENT_CHECK_TIME_S,
)
from worker.nn.gradient_check import GradientCheck
from worker.nn.model import Model
from worker.nn.streams import Streams
from worker.randomness import epoch_order
from worker.rows import Rows, RowSource, ShardStacks

# Two, so that sums over shards are checked too; one where there are not rows enough.
SHARDS = 2


@final
class JobGradientCheck:
    """Checks one tensor after another within a time that they share; `model` is the one that trains, and has the weights.

    The rows are those of step 1, its draws (dropout) too. Which elements are checked depends on the job alone, unless the time
    is too short for all of them.
    """

    def __init__(
        self,
        model: Model,
        source: RowSource,
        training_rows: Rows,
        batch_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        order = training_rows[epoch_order(model.seed, 0, len(training_rows))]
        rows = order[: min(batch_size, GRADIENT_CHECK_ROWS)]
        stacks = ShardStacks(source, len(rows), SHARDS, (0, SHARDS), model.architecture.least_shard_rows)
        stacks.fill(rows)
        self._rows, self._clock = len(rows), clock
        self._check = GradientCheck(
            model,
            stacks.stacks,
            combine=stacks.combine,
            streams=Streams(model.seed, 1, 0),
            samples=GRADIENT_CHECK_ELEMENTS,
            evaluations=GRADIENT_CHECK_EVALUATIONS,
        )
        self._end = clock() + GRADIENT_CHECK_TIME_S

    def tensor(self, number: int) -> GradientCheckReply:
        """The `number`-th learned tensor; it may take its part of the time that is left."""
        now = self._clock()
        end = now + (self._end - now) / (len(self._check.tensors) - number)
        found = self._check.tensor(number, lambda: self._clock() > end)
        message = TensorGradientCheck(
            name=found.name,
            shape=found.shape,
            elements=found.elements,
            checked=found.checked,
            skipped=found.skipped,
            worst_relative_error=found.worst_relative_error,
            worst_index=found.worst_index,
            backward=found.backward,
            numerical=found.numerical,
            float32_deviation=found.deviation,
        )
        return GradientCheckReply(tensor=message, rows=self._rows)
