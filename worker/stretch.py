"""A stretch: the steps that workers take together between two meetings with their coordinator."""

from __future__ import annotations

import time
from typing import final

import numpy as np

from lockstep.contract.arithmetic import point_interval
from lockstep.internal.v1.worker_pb2 import NonFinite, StepLoss, StretchReply, StretchRequest
from worker.checksum import crc32c
from worker.collective.peers import Deadlines
from worker.collective.plan import NodeMemory, StepSums
from worker.collective.reduce import Reduction
from worker.failpoints import armed, failpoint
from worker.limits import NAMED_ROWS, NAMED_SKIPS, SKIPPED_IN_A_ROW, STEP_TIMES
from worker.nn.model import Model, Result
from worker.nn.schedules import learning_rate
from worker.nn.streams import Streams
from worker.rows import Rows, ShardStacks, TrainingRows
from worker.specs import OptimizerRecord

_NOTHING = Result((), (), True)


@final
class Stretches:
    """Takes the steps of one worker. `step` is the last one that was applied or skipped."""

    def __init__(
        self,
        rank: int,
        model: Model,
        rows: TrainingRows,
        reduction: Reduction,
        memory: NodeMemory,
        optimizer: OptimizerRecord,
        deadlines: Deadlines,
        first_shard: int,
        total_steps: int,
        skips: bool,
    ) -> None:
        self._rank, self._model, self._rows = rank, model, rows
        self._reduction, self._memory = reduction, memory
        self._optimizer, self._deadlines, self._first_shard = optimizer, deadlines, first_shard
        self._total_steps, self._points, self._skips = total_steps, point_interval(total_steps), skips
        self._times = np.zeros(STEP_TIMES)
        self._stepped = False
        self.step = 0

    def run(self, request: StretchRequest) -> StretchReply:
        """Takes the steps. One whose gradient is not finite anywhere is skipped, or ends the stretch before it."""
        first_step, last_step = request.first_step, request.last_step
        reply = StretchReply()
        self._model.after_forward = (lambda: failpoint("step.after_forward", self.step + 1)) if armed else None
        crossed = self._reduction.crossed_bytes
        began, waited_s, clock = time.perf_counter(), self._reduction.waited_s, time.perf_counter
        computed_rows, epoch, reports_losses = 0, self._rows.steps_per_epoch, self._rank == 0
        rate_factor, skipped, in_a_row = request.rate_factor, request.skipped_steps, request.skipped_in_a_row
        with np.errstate(all="ignore"):
            for step in range(first_step, last_step + 1):
                step_began = clock()
                batch = self._rows.batch(step)
                shards = self._rows.stacks(len(batch))
                rate = learning_rate(self._optimizer, step, epoch, self._total_steps, rate_factor)

                shards.fill(batch)
                if armed:
                    failpoint("step.before_forward", step)
                result = self._forward_backward(shards, step)
                if armed:
                    failpoint("step.after_backward", step)
                sums = self._reduction.step(
                    shards.filled,
                    len(batch),
                    step,
                    rate,
                    result.finite,
                    result.loss_sums,
                    result.denominators,
                    skipped,
                )

                if sums.finite:
                    in_a_row = 0
                elif self._skips and in_a_row + 1 < SKIPPED_IN_A_ROW:
                    skipped, in_a_row = skipped + 1, in_a_row + 1
                    if len(reply.skipped) < NAMED_SKIPS:
                        reply.skipped.append(self._locate(shards, batch, step, result))
                else:
                    reply.non_finite.CopyFrom(self._locate(shards, batch, step, result))
                    break
                self.step = step
                computed_rows += shards.own_rows
                if reports_losses and (step == last_step or step % self._points == 0):
                    reply.losses.append(_loss(step, sums, rate))
                self._took(step - first_step, clock() - step_began)
        steps = min(self.step - first_step + 1, STEP_TIMES)
        reply.step, reply.computed_rows = self.step, computed_rows
        reply.skipped_steps, reply.skipped_in_a_row = skipped - request.skipped_steps, in_a_row
        reply.total_seconds = clock() - began
        reply.wait_seconds = self._reduction.waited_s - waited_s
        sent, received = self._reduction.crossed_bytes
        reply.sent_bytes, reply.received_bytes = sent - crossed[0], received - crossed[1]
        reply.compute_seconds = reply.total_seconds - reply.wait_seconds
        if steps > 0:
            reply.median_step_seconds = float(np.median(self._times[:steps]))
            self._deadlines.after(reply.median_step_seconds)
        failpoint("stretch.when_done", self.step, self._memory.parameters)
        reply.parameters_crc32c = crc32c(self._memory.parameters)
        return reply

    def _forward_backward(self, shards: ShardStacks, step: int) -> Result:
        """This worker's gradient sums of the batch, one per subtree; nothing where all its shards are empty."""
        finished = self._reduction.begin(shards.filled, step) if self._reduction.overlaps else None
        if not shards.stacks:
            return _NOTHING
        streams = Streams(self._model.seed, step, self._first_shard)
        return self._model.loss_and_gradient(shards.stacks, shards.combine, streams, finished)

    def _took(self, number: int, seconds: float) -> None:
        self._times[number % STEP_TIMES] = seconds
        if not self._stepped:
            self._stepped = True
            self._deadlines.after(seconds)

    def _locate(self, shards: ShardStacks, batch: Rows, step: int, result: Result) -> NonFinite:
        """Where this worker's pass meets the first number that is not finite; only the step if it meets none.

        All workers look: a number may be infinite in one layer and gone in the next, and is found wherever its shard is.
        """
        found = NonFinite(step=step)
        if not shards.stacks:
            return found
        streams = Streams(self._model.seed, step, self._first_shard)
        place = self._model.locate_non_finite(shards.stacks, shards.combine, streams)
        if place is None:
            if not result.finite:
                found.layer, found.where = "loss", "sum of the losses"
            return found
        found.layer, found.where, found.moment = place.layer, place.where, place.moment
        if place.shard is not None:
            found.shard, rows = shards.shard_of(place.shard, batch)
            found.shard_rows, found.non_finite_rows = len(rows), len(place.rows)
            named = rows[list(place.rows)] if place.rows else rows
            found.rows.extend(sorted(named.tolist())[:NAMED_ROWS])
        return found


def _loss(step: int, sums: StepSums, rate: float) -> StepLoss:
    return StepLoss(step=step, loss=sums.loss_sum / (sums.denominator or 1.0), learning_rate=rate)
