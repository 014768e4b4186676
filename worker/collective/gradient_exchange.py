"""The exchange of gradients between nodes: each node's sums of a chunk go to its owner, bucket by bucket.

A bucket leaves when it is complete on all workers of the node, in the middle of their backward passes, and nothing waits for
it: the links take what they can. The last one brings the node's report, and leaves when the barrier has shown that all
gradients are there. Which messages there are, and in what order, does not depend on when they are sent.
"""

from __future__ import annotations

from typing import final

import numpy as np

from worker.collective.barrier import Barrier
from worker.collective.links import Links, Message
from worker.collective.plan import StepPlan


@final
class GradientExchange:
    """One worker's part of it. All workers of the group open the same steps in the same order."""

    def __init__(self, barrier: Barrier, links: Links) -> None:
        self._barrier, self._links = barrier, links
        self._plan: StepPlan | None = None  # of the step that is open
        self._step = 0
        self._announced = 0  # ranges that this worker completed in the steps before, and so did its peers
        self._sent = 0  # buckets of the open step

    def begin(self, plan: StepPlan, step: int) -> None:
        """Opens a step: what comes has its place from now on."""
        self._plan, self._step, self._sent = plan, step, 0
        for rank, parts in plan.gradients_in:
            self._links.expect(rank, Message.GRADIENTS, step, parts)

    def finished(self, count: int) -> None:
        """The backward pass has completed its first `count` ranges: what all workers of the node have is sent, without a wait.

        Raises PeerError where a peer is gone.
        """
        plan = self._plan
        assert plan is not None
        self._barrier.announce(self._announced + count)
        ready = self._barrier.announced() - self._announced
        while self._sent < len(plan.buckets) - 1 and plan.buckets[self._sent].after <= ready:
            self._send_next(plan)
        self._links.progress(self._step)

    def go_on(self) -> None:
        """This worker has nothing more to come, be it for want of rows; what others of its node complete is sent."""
        if self._plan is not None:
            self.finished(self._plan.buckets[-1].after)

    def finish(self, plan: StepPlan, step: int) -> None:
        """All gradients and reports of the node are there: sends the rest. Whoever has not begun begins here."""
        if self._plan is None:
            self.begin(plan, step)
        plan.report_node()
        while self._sent < len(plan.buckets):
            self._send_next(plan)
        self._announced += plan.buckets[-1].after
        self._plan = None

    def _send_next(self, plan: StepPlan) -> None:
        for sums in plan.gradients_out:
            additions, parts = sums.pieces[self._sent]
            for left, right, out in additions:
                np.add(left, right, out=out)
            if parts:
                self._links.send(sums.owner, Message.GRADIENTS, self._step, parts)
        self._sent += 1
