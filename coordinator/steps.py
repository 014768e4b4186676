"""The steps of a run, stretch by stretch, and the snapshot where it stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

from coordinator import limits
from coordinator.members import Members
from coordinator.model_files import ModelFiles
from coordinator.recovery import Corrupted, GroupFailed, NotFinite, earliest, skipped_sentence
from coordinator.reports import Reports
from coordinator.snapshots import Snapshot, assemble
from coordinator.standing import Standing
from coordinator.stretches import Cadence, Pace, Stretch, next_stretch
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import worker_pb2
from lockstep.v1 import job_spec_pb2
from lockstep.v1 import training_job_pb2 as job
from worker.failpoints import failpoint
from worker.limits import SKIPPED_IN_A_ROW


@final
class Steps:
    """Has groups take the steps, and moves the run's standing with each stretch.

    A worker sees a gradient that is not finite. Sums of finite gradients and updates may overflow, too, which shows in the
    state behind the stretch, and for good. Then its steps are taken again one by one, and the first that gives such numbers is
    skipped, or ends the job, as one with such a gradient is: so nothing depends on where stretches end. Without `reports`
    nothing is told of single steps.
    """

    def __init__(
        self,
        order: agent.RunOrder,
        files: ModelFiles,
        reports: Reports | None,
        at: Standing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._order, self._files, self._reports, self._at, self._clock = order, files, reports, at, clock
        self._cadence = Cadence.of(order)
        self._pace = Pace()
        self._one_by_one_to = 0
        self.checkpoint = Path()  # under the files folder: the one that the run began with
        self.snapshot: Snapshot | None = None  # of this run, at the step where it stands

    def put(self, members: Members) -> None:
        """Puts the state where the run stands into a new group, or back into one."""
        self._pace = Pace()  # another number of workers takes other times, and the first step warms them up
        self._restore(members)

    def _restore(self, members: Members) -> None:
        if self.snapshot is not None:
            members.give(self.snapshot)
        else:
            members.restore(self._at.step, "" if self.checkpoint == Path() else str(self.checkpoint))

    def take(self, members: Members, apart_s: float, furthest: int | None = None) -> Stretch:
        """Takes a stretch of steps, `apart_s` after the last checkpoint and to step `furthest` at most, and copies the state
        behind it: then, and only then, the run stands there. Raises NotFinite.
        """
        stretch = next_stretch(self._cadence, self._at.step, self._pace, apart_s)
        if furthest is not None:
            stretch = Stretch(stretch.first, min(stretch.last, furthest))
        if stretch.first <= self._one_by_one_to:
            stretch = Stretch(stretch.first, stretch.first)
        replies = members.take(stretch, self._at.controller, self._pace.step_s)
        copying = self._clock()
        snapshot = self.copied(members, replies[0].step)
        copied, theirs = snapshot.checksums["parameters"], replies[0].parameters_crc32c
        if copied != theirs:
            raise Corrupted(
                f"after step {snapshot.step} the copy of the parameters is not what the workers have (CRC-32C {copied:08x} "
                f"instead of {theirs:08x}); memory or a link is not sound"
            )
        vector = snapshot.not_finite()
        if vector and stretch.steps > 1:
            self._one_by_one_to = stretch.last
            self._at.dropped(replies[0].step)
            self._restore(members)
            return self.take(members, apart_s, furthest)
        if vector:
            snapshot = self._left_out(members, replies[0], vector)
        self._stepped(replies)
        if found := [reply.non_finite for reply in replies if reply.HasField("non_finite")]:
            raise NotFinite(earliest(found))
        self.snapshot = snapshot
        step_s = replies[0].median_step_seconds or replies[0].total_seconds / stretch.steps
        self._pace = self._pace.after(stretch.steps, step_s, self._clock() - copying)
        return stretch

    def copied(self, members: Members, step: int) -> Snapshot:
        """The state that the group has, which is that of the step."""
        snapshot = assemble(step, self._files.vector_size, self._files.vector_names, members.state())
        failpoint("snapshot.when_copied", step, snapshot.parameters)
        return snapshot

    def _left_out(self, members: Members, reply: worker_pb2.StretchReply, vector: str) -> Snapshot:
        """The state behind a step whose update is left out after it was seen to overflow. Raises NotFinite."""
        found = worker_pb2.NonFinite(step=reply.step)
        in_a_row = self._at.controller.skipped_in_a_row + 1
        if self._order.spec.non_finite != job_spec_pb2.SKIP_STEP or in_a_row == SKIPPED_IN_A_ROW:
            raise NotFinite(found, vector)
        if self.snapshot is None:
            try:
                self._restore(members)
                self.snapshot = self.copied(members, self._at.step)
            except GroupFailed:
                self._at.dropped(reply.step)  # another group takes the step again
                raise
        snapshot = replace(self.snapshot, step=reply.step)
        members.give(snapshot)
        self._tell(self._at.controller.skipped_steps + 1, found, vector)
        reply.skipped_steps, reply.skipped_in_a_row = 1, in_a_row
        return snapshot

    def _stepped(self, replies: Sequence[worker_pb2.StretchReply]) -> None:
        places = zip(*(reply.skipped for reply in replies), strict=True)
        for number, found in enumerate(places, self._at.controller.skipped_steps + 1):
            self._tell(number, earliest(found))
        self._at.stepped(replies)
        for loss in replies[0].losses:
            if self._reports is not None and self._cadence.is_point(loss.step):
                values = [("loss", loss.loss), ("learning_rate", loss.learning_rate)]
                self._reports.points(loss.step, self._at.rows.epoch_of(loss.step), values)

    def _tell(self, number: int, found: worker_pb2.NonFinite, vector: str = "") -> None:
        """Tells of the job's skipped step of that number, unless an earlier run did, or there were many."""
        if self._reports is None or number > limits.SKIP_NOTICES or found.step <= self._order.furthest_step:
            return
        more = "; further ones are counted, and not told" if number == limits.SKIP_NOTICES else ""
        self._reports.notice(job.Notice.WARNING, "STEP_SKIPPED", skipped_sentence(found, vector) + more)
