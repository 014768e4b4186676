"""The workers of a run, whatever becomes of them: started as a gang, lost, replaced, more, fewer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import final

from coordinator import limits
from coordinator.group.group import Interrupted, WorkerGroup, WorkerLoss
from coordinator.group.heartbeat import Heartbeat
from coordinator.joining import NotFitting
from coordinator.members import Members
from coordinator.recovery import GroupFailed
from coordinator.reports import Reports, workers
from coordinator.sharding import workers_used
from coordinator.wanted import Wanted
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import worker_pb2
from lockstep.v1 import training_job_pb2 as job
from worker.failpoints import failpoint


@final
class Crew:
    """The processes of one run; `form` makes a group of those that are there.

    Each group has a new number, a new key and fresh segments: whoever was lost and wakes late writes where nobody looks.
    Survivors are never started anew, and nobody waits for replacements as long as there are enough.
    """

    def __init__(
        self,
        order: agent.RunOrder,
        files_folder: Path,
        reports: Reports,
        wanted: Wanted,
        group: WorkerGroup,
        clock: Callable[[], float],
    ) -> None:
        self._order, self._files_folder, self._reports, self._wanted = order, files_folder, reports, wanted
        self._group, self._clock = group, clock
        self._heartbeat = Heartbeat(group)
        self._number = 0
        self._refused = False  # somebody was, and too few are there since
        self._hire_at, self._hire_wait_s = 0.0, limits.HIRE_FIRST_S
        self._said: set[str] = set()
        self.formed_at = clock()

    def __enter__(self) -> Crew:
        self._heartbeat.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._heartbeat.__exit__(kind, error, trace)
        self._group.close()

    @property
    def size(self) -> int:
        """How many workers there are."""
        return self._group.size

    @property
    def wanted(self) -> int:
        """How many there are to be."""
        return workers_used(self._order.plan, self._wanted.workers())

    @property
    def least(self) -> int:
        """With fewer the run waits."""
        return max(1, min(self._wanted.least(), self.wanted))

    def start(self) -> None:
        """Starts as many as are wanted, or none. Raises GroupStartFailed, Interrupted."""
        failpoint("group.before_start")
        self._group.start(self.wanted, limits.GROUP_START_S, self._wanted.cancelled)
        failpoint("group.when_started")

    def form(self, fingerprint: str, step: int) -> Members | None:
        """A group of those that are there and fit, once they are enough; it is linked and has no state yet.

        None when a pause was asked for while they were not enough. Raises Interrupted, GroupFailed.
        """
        while (members := self._join(fingerprint, step)) is None:
            if self._wanted.cancelled():
                raise Interrupted
            if self._wanted.paused():
                return None
            self._wanted.wait(limits.POLL_S)
        members.prepare()
        for sentence in members.short_of_memory():
            self._warn("MEMORY_SHORT", sentence)
        return members

    def _join(self, fingerprint: str, step: int) -> Members | None:
        """Everybody who is there, proved, or None when they are too few, which is said."""
        if self._group.arrived():
            self._group.welcome()
        if self._group.size > self.wanted:
            self._group.keep(range(self.wanted))
        self._hire()
        failed = self._group.failed()
        if self._group.size < self.least:
            if failed:
                raise GroupFailed(step, "starting", failed, {}, size=self._group.size)
            if not self._refused:
                there = f"{self._group.size} of at least {workers(self.least)}"
                text = f"the run waits after step {step} with {there} until others have started"
                self._reports.recovering("WORKERS_MISSING", text)
            return None
        for loss in failed:
            self._warn("WORKER_LOST", f"a worker that was to join on node {loss.node[:12]} {loss.text}; another is asked for")
        self.formed_at = self._clock()
        self._number += 1
        members = Members(self._group, self._order, self._files_folder, self._number, self._wanted.cancelled, step)
        try:
            refused = members.join(fingerprint, self.least).refused
        except NotFitting as few:
            self._group.keep(few.fitting)
            self._put_off_hiring()
            self._refused = True
            self._reports.recovering("NODE_FINGERPRINT_DIFFERS", f"{few}; it goes on as soon as they are there")
            return None
        self._refused = False
        failpoint("group.when_joined", step)
        for sentence in refused:
            self._warn("NODE_FINGERPRINT_DIFFERS", f"{sentence}; it was refused")
        if refused:
            self._put_off_hiring()
        return members

    def regroups(self) -> bool:
        """Between stretches: asks for whom is missing, and says whether a new group should be formed."""
        self._hire()
        return self._group.size > self.wanted or self._group.arrived() > 0

    def stepped(self) -> None:
        """A stretch was completed: whoever is in the group can do it."""
        if self._group.size >= self.wanted:
            self._hire_wait_s = limits.HIRE_FIRST_S

    def lose(self, lost: Sequence[int], deadline_s: float, hire_later: bool) -> tuple[int, list[WorkerLoss]]:
        """Ends the lost workers and asks for others; awaits the answers that survivors still owe, and ends those who give none.

        Gives the furthest step that one of these answers speaks of, 0 if none does, and those who gave none, by the ranks
        that they had. Raises Interrupted.
        """
        left = [rank for rank in range(self._group.size) if rank not in lost]
        self._group.keep(left)
        owed = self._group.settle(deadline_s, self._wanted.cancelled)
        late = {loss.rank for loss in owed.losses}
        if late:
            self._group.keep([rank for rank in range(self._group.size) if rank not in late])
        failpoint("recovery.when_fenced")
        if hire_later:
            self._put_off_hiring()
        self._hire()
        replies = [worker_pb2.WorkerReply.FromString(reply) for reply in owed.by_rank.values()]
        reached = max((max(reply.failure.step, reply.stretch.step) for reply in replies), default=0)
        return reached, [replace(loss, rank=left[loss.rank]) for loss in owed.losses]

    def _hire(self) -> None:
        if self._clock() >= self._hire_at:
            self._group.hire(max(0, self.wanted - self._group.size))

    def _put_off_hiring(self) -> None:
        self._hire_at = self._clock() + self._hire_wait_s
        self._hire_wait_s = min(2 * self._hire_wait_s, limits.HIRE_LAST_S)

    def _warn(self, word: str, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._reports.notice(job.Notice.WARNING, word, sentence)
