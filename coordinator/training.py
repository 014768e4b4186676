"""The loop of a training run: stretches, evaluations, checkpoints, from the newest checkpoint to the last step."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, final

from coordinator import limits
from coordinator.checkpoint_folder import NoSpace
from coordinator.checkpoints import Checkpoints, Committed
from coordinator.evaluation import combine
from coordinator.group.group import GroupStartFailed, Interrupted, WorkerGroup, never
from coordinator.group.heartbeat import Heartbeat
from coordinator.joining import NotFitting
from coordinator.members import Members
from coordinator.model_files import ModelFiles
from coordinator.recovery import Corrupted, EndRun, GroupFailed, NotFinite, decide
from coordinator.reports import Reports
from coordinator.sharding import workers_used
from coordinator.snapshots import Snapshot, assemble
from coordinator.standing import Standing
from coordinator.stretches import Cadence, Pace, Stretch, next_stretch
from lockstep.contract.arithmetic import EVALUATION_BLOCK_ROWS
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import worker_pb2
from lockstep.v1 import training_job_pb2 as job


class Wanted(Protocol):
    """What is wanted of the run right now."""

    def cancelled(self) -> bool: ...

    def paused(self) -> bool: ...

    def wait(self, timeout_s: float) -> None: ...


@final
class Training:
    """One run of a training job. `run` returns how it ended; whatever it raises besides is a fault or a broken disk."""

    def __init__(
        self,
        order: agent.RunOrder,
        files_folder: Path,
        reports: Reports,
        wanted: Wanted,
        make_group: Callable[[], WorkerGroup],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._order, self._files_folder, self._reports, self._wanted = order, files_folder, reports, wanted
        self._make_group, self._clock = make_group, clock
        self._files = ModelFiles(order, files_folder)
        self._cadence = Cadence.of(order)
        self._checkpoints = Checkpoints(
            files_folder / "checkpoints" / order.job_id,
            order.job_id,
            order.arithmetic_digest,
            order.dataset_digest,
            order.spec.checkpoints.keep or limits.CHECKPOINTS_KEPT,
        )
        self._at = Standing(order)
        self._fingerprint = order.fingerprint
        self._pace = Pace()
        self._committed_at = clock()
        self._putting_off = False
        self._group_number = 0

    def run(self) -> agent.RunEnded:
        """Trains to the last step, or as far as is wanted and possible."""
        start = self._recover()
        if self._at.finished:
            return self._ended(agent.RunEnded.SUCCEEDED, f"all {self._at.step} steps were applied by an earlier run")
        while True:
            if self._wanted.cancelled():
                return self._cancelled()
            if self._wanted.paused():
                return self._ended(agent.RunEnded.PAUSED, f"paused at step {self._at.step}, before its workers started")
            group = self._make_group()
            try:
                with Heartbeat(group):
                    return self._train(group, start)
            except NotFitting as waiting:
                text = f"{waiting}; it goes on as soon as they are there"
                self._reports.recovering("NODE_FINGERPRINT_DIFFERS", text)
            except Interrupted:
                return self._cancelled()
            except GroupStartFailed as failed:
                cause = agent.RunEnded.OUTSIDE if failed.outside else agent.RunEnded.OWN
                return self._ended(agent.RunEnded.LOST, str(failed), cause)
            except (GroupFailed, NotFinite, Corrupted) as failure:
                return self._decided(decide(failure, self._order.spec.non_finite))
            finally:
                group.close()
            self._wanted.wait(limits.RETRY_S)

    def _train(self, group: WorkerGroup, start: Committed | None) -> agent.RunEnded:
        members = self._gather(group, start)
        pausing = not self._evaluate_if_due(members)
        while not (pausing or self._at.finished):
            began = self._clock()
            stretch = next_stretch(self._cadence, self._at.step, self._pace, began - self._committed_at)
            snapshot = self._take(members, stretch)
            # Before the checkpoint, which so holds what the controller makes of it.
            pausing = (not self._evaluate_if_due(members) or self._wanted.paused()) and not self._at.finished
            must_keep = pausing or self._at.finished
            self._reports.progress(self._at.message(stretch, self._clock() - began), self._at.computed_rows, last=must_keep)
            if must_keep or self._cadence.checkpoints(self._at.step, self._clock() - self._committed_at):
                self._commit(snapshot, put_off=not must_keep)
        if pausing:
            return self._ended(agent.RunEnded.PAUSED, f"paused at step {self._at.step}")
        return self._ended(agent.RunEnded.SUCCEEDED, f"all {self._at.step} steps were applied")

    def _recover(self) -> Committed | None:
        start, damaged = self._checkpoints.recover()
        for sentence in damaged:
            where = f"step {start.step}" if start else "the beginning"
            self._reports.notice(job.Notice.WARNING, "CHECKPOINT_DAMAGED", f"{sentence}; the run goes on from {where}")
        if start is not None:
            self._at.resume(start.manifest)
            self._fingerprint = start.manifest.fingerprint
            # It may have been committed by a run that could not say so any more.
            self._reports.checkpoint(self._checkpoints.message(start))
        return start

    def _gather(self, group: WorkerGroup, start: Committed | None) -> Members:
        order = self._order
        group.start(workers_used(order), limits.GROUP_START_S, self._wanted.cancelled)
        self._group_number += 1
        members = Members(group, order, self._files_folder, self._group_number, self._wanted.cancelled)
        for refused in members.join(self._fingerprint, order.spec.workers.min).refused:
            self._reports.notice(job.Notice.WARNING, "NODE_FINGERPRINT_DIFFERS", f"{refused}; it was refused")
        folder = str(start.folder.relative_to(self._files_folder)) if start else ""
        members.prepare(self._at.step, folder)
        self._fingerprint = members.fingerprint
        self._at.computed_rows = [0] * group.size
        for sentence in members.short_of_memory():
            self._reports.notice(job.Notice.WARNING, "MEMORY_SHORT", sentence)
        if order.run_number == 1:
            for sentence in self._files.classes_on_one_side():
                self._reports.notice(job.Notice.WARNING, "CLASS_MISSING", sentence)
        self._committed_at = self._clock()
        self._reports.started(members.infos(), self._at.start, members.fingerprint)
        return members

    def _take(self, members: Members, stretch: Stretch) -> Snapshot:
        """Takes a stretch of steps and copies the state behind it. Raises NotFinite."""
        replies = members.take(stretch, self._at.controller.rate_factor, self._pace.step_s)
        self._at.step = replies[0].step
        for loss in replies[0].losses:
            self._at.loss = loss.loss
            if self._cadence.is_point(loss.step):
                values = [("loss", loss.loss), ("learning_rate", loss.learning_rate)]
                self._reports.points(loss.step, self._at.rows.epoch_of(loss.step), values)
        for rank, reply in enumerate(replies):
            self._at.computed_rows[rank] += reply.computed_rows
        found = [reply.non_finite for reply in replies if reply.HasField("non_finite")]
        if found:
            raise NotFinite(max(found, key=lambda place: bool(place.layer)))
        copying = self._clock()
        snapshot = assemble(self._at.step, self._files.vector_size, self._files.vector_names, members.state())
        if vector := snapshot.not_finite():
            raise NotFinite(None, vector, stretch.first, stretch.last)
        self._pace = self._pace.after(stretch.steps, _step_seconds(replies[0], stretch), self._clock() - copying)
        return snapshot

    def _evaluate_if_due(self, members: Members) -> bool:
        """Evaluates the last step if that is due. False where a pause drops it: the next run begins with it."""
        if not self._cadence.evaluates(self._at.step) or self._at.controller.seen_step == self._at.step:
            return True
        paused = never if self._at.finished else self._wanted.paused
        try:
            self._evaluate(members, lambda: self._wanted.cancelled() or paused())
        except Interrupted:
            if self._wanted.cancelled():
                raise
            return False
        return True

    def _evaluate(self, members: Members, interrupted: Callable[[], bool]) -> None:
        blocks = -(-self._order.plan.validation_rows // EVALUATION_BLOCK_ROWS)
        evaluation = combine(members.evaluate(interrupted), blocks, self._files.positions)
        self._at.evaluated(evaluation)
        if self._cadence.is_evaluation_point(self._at.step):
            self._reports.points(self._at.step, self._at.epoch, evaluation.points())

    def _commit(self, snapshot: Snapshot, put_off: bool) -> None:
        """Commits the snapshot. Without space it is put off, or, where it cannot be, space is waited for."""
        files, sha256 = self._files.tensors(snapshot)
        self._reports.sync()  # the points up to a checkpoint are durable before it
        while True:
            try:
                committed = self._checkpoints.commit(
                    self._at.step,
                    self._fingerprint,
                    files,
                    lambda records: self._files.manifest(records, self._at, self._fingerprint, sha256),
                )
            except NoSpace as full:
                self._committed_at = self._clock()
                if put_off and self._putting_off:
                    return  # said already; a cadence of few steps would say it for ever
                if put_off:
                    self._putting_off = True
                    text = f"step {self._at.step}: {full}; checkpoints are put off and training goes on. Free some space"
                    self._reports.notice(job.Notice.WARNING, "CHECKPOINT_DEFERRED", text)
                    return
                text = f"step {self._at.step}: {full}; the run waits until there is. Free some space"
                self._reports.recovering("CHECKPOINT_DEFERRED", text)
                if self._wanted.cancelled():
                    raise Interrupted from full
                self._wanted.wait(limits.RETRY_S)
                continue
            self._committed_at, self._putting_off = self._clock(), False
            self._reports.checkpoint(self._checkpoints.message(committed))
            return

    def _cancelled(self) -> agent.RunEnded:
        return self._ended(agent.RunEnded.CANCELLED, f"cancelled after step {self._at.step}; {self._kept()}")

    def _decided(self, end: EndRun) -> agent.RunEnded:
        if end.notice:
            self._reports.notice(job.Notice.ERROR, end.notice, end.reason)
        reason = f"{end.reason}; {self._kept()}" if end.outcome == agent.RunEnded.FAILED else end.reason
        return self._ended(end.outcome, reason, end.cause)

    def _kept(self) -> str:
        """What is left to take home."""
        result = self._checkpoints.result()
        return f"the checkpoint of step {result.step} is kept" if result else "it has no checkpoint yet"

    def _ended(
        self,
        outcome: agent.RunEnded.Outcome.ValueType,
        reason: str,
        cause: agent.RunEnded.Cause.ValueType = agent.RunEnded.CAUSE_UNSPECIFIED,
    ) -> agent.RunEnded:
        return agent.RunEnded(
            outcome=outcome,
            reason=reason,
            result=self._checkpoints.result(),
            last_step=self._at.step,
            computed_rows=self._at.computed_rows,
            cause=cause,
        )


def _step_seconds(reply: worker_pb2.StretchReply, stretch: Stretch) -> float:
    return reply.median_step_seconds or reply.total_seconds / stretch.steps
