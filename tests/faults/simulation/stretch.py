"""Steps that simulated workers take together: as in the real collective, nobody ends one that somebody has not begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lockstep.contract.arithmetic import point_interval
from lockstep.internal.v1 import worker_pb2
from tests.faults.simulation.arithmetic import F32, Arithmetic, crc32c
from tests.faults.simulation.worker import Part
from worker.collective.tree import owned_shards

# A step, and the parameters and the velocity behind it.
Watch = Callable[[int, F32, F32], None]


def take_steps(
    arithmetic: Arithmetic, parts: Sequence[Part], request: worker_pb2.StretchRequest, last: int, watch: Watch | None
) -> list[worker_pb2.StretchReply]:
    """Has the parts, which stand before the request's first step, take the steps up to `last`; the answers by rank."""
    replies = [worker_pb2.StretchReply(skipped_in_a_row=request.skipped_in_a_row) for _ in parts]
    points = point_interval(arithmetic.job.total_steps)
    with np.errstate(all="ignore"):
        for step in range(request.first_step, last + 1):
            rate = arithmetic.rate(step, request.rate_factor)
            loss = arithmetic.loss(parts[0].leader.parameters, step)
            finite = step not in arithmetic.job.bad
            if finite:
                _apply(arithmetic, parts, step, rate, step - 1 - request.skipped_steps - replies[0].skipped_steps)
            for part, reply in zip(parts, replies, strict=True):
                part.step = step
                if not finite:
                    reply.skipped.add(step=step)
                reply.skipped_steps += not finite
                reply.skipped_in_a_row = 0 if finite else reply.skipped_in_a_row + 1
                owned = owned_shards(part.rank, len(parts), arithmetic.job.shards)
                reply.computed_rows += arithmetic.shard_rows(step, *owned)
            if step == request.last_step or step % points == 0:
                replies[0].losses.add(step=step, loss=loss, learning_rate=rate)
            if watch is not None:
                velocity = np.concatenate([part.velocity for part in parts])
                watch(step, parts[0].leader.parameters.copy(), velocity)
    for part, reply in zip(parts, replies, strict=True):
        part.hide()
        reply.step = part.step
        reply.parameters_crc32c = crc32c(part.leader.parameters)
    return replies


def _apply(arithmetic: Arithmetic, parts: Sequence[Part], step: int, rate: float, applied: int) -> None:
    filled = min(arithmetic.job.shards, arithmetic.rows_of(step))
    sums = {
        subtree: arithmetic.subtree_sum(part.leader.parameters, step, subtree)
        for part in parts
        for subtree in part.exchange.worker_subtrees(part.rank, filled)
    }
    gradient = arithmetic.gradient(sums, step)
    for part in parts:
        first, end = part.chunk
        chunk = part.leader.parameters[first:end]
        arithmetic.update(chunk, part.velocity, gradient[first:end], rate, step, applied)
        for other in parts:  # all-gather
            if other.leads and other is not part.leader:
                other.parameters[first:end] = chunk
