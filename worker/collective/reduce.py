"""The reduction: reduce-scatter, update, all-gather, over a barrier inside the node and links between nodes.

Each worker has posted a gradient sum per subtree. The owner of a chunk sums the subtrees' vectors in tree order, divides once
by the denominator and applies the optimizer, block by block while the block is in cache. The parameters lie in memory that a
node shares, so that the all-gather is a barrier; other nodes get the updated chunks over their links.

An update that needs norms of the whole vector is several passes over the chunk; between them the blocks' sums of squares are
gathered in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, final

import numpy as np

from worker.collective.barrier import Barrier
from worker.collective.buckets import Range, buckets
from worker.collective.gradient_exchange import GradientExchange
from worker.collective.layout import ExchangeLayout
from worker.collective.links import Links, Message
from worker.collective.norms import NormExchange, Norms
from worker.collective.peers import Deadlines
from worker.collective.plan import NodeMemory, StepPlan, StepSums
from worker.collective.shared_memory import F32
from worker.collective.sums import ScratchBlocks
from worker.failpoints import armed, failpoint, halfway
from worker.nn.shapes import BLOCK_FLOATS


class Update(Protocol):
    """What moves the parameters: elementwise and in place on equal-length 1-D views that no cut divides."""

    @property
    def cuts(self) -> Sequence[int]:
        """Where in the flat vector the update changes its kind."""
        ...

    @property
    def learned(self) -> int:
        """Where the learned tensors end and the state begins, whose sums are over rows."""
        ...

    @property
    def norms(self) -> Norms | None:
        """What each pass but the last measures; None if one pass is all."""
        ...

    def begin(self, number: int) -> None:
        """Opens pass `number`, from 1 on: every block has been measured by the pass before."""
        ...

    def apply(
        self,
        first: int,
        parameters: F32,
        gradient: F32,
        state: tuple[F32, ...],
        step: int,
        learning_rate: float,
        number: int = 0,
    ) -> None:
        """Pass `number` of update `step` on the block that begins at `first`. The gradient is the mean, and may be overwritten;
        what a pass leaves there the next one gets."""
        ...


@final
class Reduction:
    """One worker's part of the reduction. All workers of the group call `step` with the same steps in the same order.

    `finished_ranges` are those of the model: with them, and other nodes, gradients cross while the backward pass goes on.
    """

    def __init__(
        self,
        layout: ExchangeLayout,
        rank: int,
        memory: NodeMemory,
        barrier: Barrier,
        links: Links,
        update: Update,
        deadlines: Deadlines,
        finished_ranges: Sequence[Range] = (),
    ) -> None:
        self._layout, self._rank, self._memory = layout, rank, memory
        self._barrier, self._links, self._update, self._deadlines = barrier, links, update, deadlines
        self._scratch = ScratchBlocks(BLOCK_FLOATS)
        self._norms = None if update.norms is None else NormExchange(layout, rank, memory.norms, update.norms)
        self._passes = 1 if update.norms is None else 1 + len(update.norms.rows)
        self._report = memory.reports[rank]
        # 0-d arrays: a division by one is faster than by an array of one number.
        self._denominator, self._rows = np.ones((), np.float32), np.ones((), np.float32)
        self._plans: dict[int, StepPlan] = {}
        self._links_waited_s = 0.0
        self._gradients = GradientExchange(barrier, links)
        self._finished = self._gradients.finished
        self._buckets = buckets(finished_ranges)
        # Whether the backward pass has anybody to tell what it has finished: the last bucket is sent after it in any case.
        self.overlaps = len(layout.members) > 1 and len(self._buckets) > 1
        self._go_on = self._gradients.go_on if self.overlaps else None

    @property
    def waited_s(self) -> float:
        """Time spent in waiting for peers so far."""
        return self._barrier.waited_s + self._links_waited_s

    @property
    def crossed_bytes(self) -> tuple[int, int]:
        """What this worker sent to other nodes and received from them so far."""
        return self._links.sent_bytes, self._links.received_bytes

    def begin(self, filled: int, step: int) -> Callable[[int], None]:
        """Opens a step that overlaps, before its passes. What it returns is told what the backward pass has completed."""
        self._gradients.begin(self._plan(filled), step)
        return self._finished  # the same object in every step

    def step(
        self,
        filled: int,
        rows: int,
        step: int,
        learning_rate: float,
        finite: bool,
        loss_sums: Sequence[float],
        denominators: Sequence[float],
        skipped: int = 0,
    ) -> StepSums:
        """Joins the step of a batch of `rows` rows in `filled` shards, `skipped` of the steps before it not being applied.

        The sums are per subtree of this worker; the vectors are in its memory.
        """
        plan = self._plan(filled)
        report = self._report
        report[0] = 1.0 if finite else 0.0
        for index, value in enumerate(loss_sums):
            report[1 + 2 * index] = value
            report[2 + 2 * index] = denominators[index]

        if armed:
            failpoint("reduce.after_post", step)
        if self._go_on is not None:
            self._go_on()
        self._barrier.wait(step, self._deadlines.seconds, self._go_on)  # gradients are ready
        if plan.gradients_in:
            self._exchange_gradients(plan, step)
        total = plan.total()
        if total.finite:
            self._apply(plan, step, step - skipped, learning_rate, total.denominator, rows)
        if plan.gradients_in:
            self._exchange_parameters(plan, step, total.finite)
        if armed:
            failpoint("gather.when_sent", step, self._memory.parameters)
        # Parameters are ready; or all have read the reports and gradients of a step that is not applied.
        self._barrier.wait(step, self._deadlines.seconds)
        return total

    def _plan(self, filled: int) -> StepPlan:
        plan = self._plans.get(filled)
        if plan is None:
            plan = self._plans[filled] = StepPlan(
                self._layout,
                self._rank,
                self._memory,
                filled,
                self._scratch,
                self._update.cuts,
                self._passes > 1,
                self._buckets,
            )
        return plan

    def _apply(self, plan: StepPlan, step: int, update: int, learning_rate: float, denominator: float, rows: int) -> None:
        self._denominator[()] = denominator or 1.0  # no weight at all: the sum is zero, and so is the gradient
        self._rows[()] = rows
        add, divide, apply, learned = np.add, np.divide, self._update.apply, self._update.learned
        for block in halfway("reduce.when_half_done", plan.blocks, step) if armed else plan.blocks:
            for left, right, out in block.additions:
                add(left, right, out=out)
            divide(block.total, self._denominator if block.first < learned else self._rows, out=block.gradient)
            apply(block.first, block.parameters, block.gradient, block.state, update, learning_rate)
        for number in range(1, self._passes):
            self._exchange_norms(number, step)
            self._update.begin(number)
            if armed:
                failpoint("update.when_begun", step)
            for block in halfway("update.when_half_done", plan.blocks, step) if armed else plan.blocks:
                apply(block.first, block.parameters, block.gradient, block.state, update, learning_rate, number)
        if armed:
            failpoint("update.when_done", step)

    def _exchange_norms(self, number: int, step: int) -> None:
        """Returns when the sums of all blocks, as the pass before `number` measured them, lie in the node's memory."""
        norms = self._norms
        assert norms is not None
        for rank, parts in norms.incoming[number - 1]:
            self._links.expect(rank, Message.NORMS, step, parts)
        for rank, parts in norms.outgoing[number - 1]:
            self._links.send(rank, Message.NORMS, step, parts)
        self._complete(step, wait=1 + number, sent=False)
        self._barrier.wait(step, self._deadlines.seconds)

    def _exchange_gradients(self, plan: StepPlan, step: int) -> None:
        self._gradients.finish(plan, step)
        self._complete(step, wait=1, sent=False)

    def _exchange_parameters(self, plan: StepPlan, step: int, finite: bool) -> None:
        if finite:
            for rank, parts in plan.parameters_in:
                self._links.expect(rank, Message.PARAMETERS, step, parts)
            for rank, parts in plan.parameters_out:
                self._links.send(rank, Message.PARAMETERS, step, parts)
        self._complete(step, wait=1 + self._passes, sent=True)

    def _complete(self, step: int, wait: int, sent: bool) -> None:
        began = time.perf_counter()
        self._links.complete(step, self._deadlines.for_other_nodes_s(wait), sent, self._barrier.excuse)
        self._barrier.forgive()
        self._links_waited_s += time.perf_counter() - began
