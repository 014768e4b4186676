"""Who gets which shards: how many workers take part, in which order, and how many rows steps have. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from lockstep.v1 import training_job_pb2 as job


def workers_used(plan: job.Plan, granted: int) -> int:
    """The workers of a run to which so many are granted: all of them, and never more than there are shards with rows."""
    return max(1, min(granted, plan.filled_shards or plan.shards))


def by_node(nodes: Sequence[str]) -> list[int]:
    """The ranks reordered so that workers of one node are neighbours, and so own contiguous shards; nodes as they come."""
    first_of = {node: nodes.index(node) for node in nodes}
    return sorted(range(len(nodes)), key=lambda rank: (first_of[nodes[rank]], rank))


@final
class Rows:
    """How many training rows steps apply. An epoch's last batch may be short; a batch never has more rows than the epoch."""

    def __init__(self, training_rows: int, batch_size: int, steps_per_epoch: int) -> None:
        self._epoch_rows = training_rows
        self._batch_rows = min(batch_size, training_rows)
        self._steps_per_epoch = steps_per_epoch

    def up_to(self, step: int) -> int:
        """Rows of the steps 1 to `step`."""
        epochs, steps = divmod(step, self._steps_per_epoch)
        return epochs * self._epoch_rows + steps * self._batch_rows

    def between(self, after: int, step: int) -> int:
        """Rows of the steps after + 1 to `step`; 0 when there are none."""
        return self.up_to(step) - self.up_to(after) if step > after else 0

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, that a step belongs to; 0 for step 0."""
        return (step - 1) // self._steps_per_epoch + 1 if step else 0
