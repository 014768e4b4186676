"""When and how the snapshots of a run become checkpoints, and what becomes of those for which there is no space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import final

from coordinator import limits
from coordinator.checkpoint_folder import NoSpace
from coordinator.checkpoints import Checkpoints, Committed
from coordinator.group.group import Interrupted
from coordinator.model_files import ModelFiles
from coordinator.reports import Reports
from coordinator.snapshots import Snapshot
from coordinator.standing import Standing
from coordinator.wanted import Wanted
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import training_job_pb2 as job
from worker.failpoints import failpoint


@final
class Commits:
    """Commits the snapshots of one run. Raises CheckpointBroken where the disk is broken."""

    def __init__(
        self, order: agent.RunOrder, files_folder: Path, reports: Reports, wanted: Wanted, clock: Callable[[], float]
    ) -> None:
        self._reports, self._wanted, self._clock = reports, wanted, clock
        self._files = ModelFiles(order, files_folder)
        self._checkpoints = Checkpoints(
            files_folder / "checkpoints" / order.job_id,
            order.job_id,
            order.arithmetic_digest,
            order.dataset_digest,
            order.spec.checkpoints.keep or limits.CHECKPOINTS_KEPT,
            order.acknowledged,
        )
        self._committed_at = clock()
        self._putting_off = False
        self._passed_over = False

    @property
    def apart_s(self) -> float:
        """The time since the last checkpoint, or since the run's steps began."""
        return self._clock() - self._committed_at

    def recover(self) -> Committed | None:
        """The newest whole checkpoint; those that are damaged are told."""
        start, damaged = self._checkpoints.recover()
        self._passed_over = bool(damaged)
        for sentence in damaged:
            where = f"step {start.step}" if start else "the beginning"
            self._reports.notice(job.Notice.WARNING, "CHECKPOINT_DAMAGED", f"{sentence}; the run goes on from {where}")
        if start is not None:
            # It may have been committed by a run that could not say so any more.
            self._reports.checkpoint(self._checkpoints.message(start))
        return start

    def begin(self) -> None:
        """The steps begin, and it was said where: checkpoints after that do not count any more, so all that do are said."""
        self._committed_at = self._clock()
        if self._passed_over:
            for committed in self._checkpoints.held():
                self._reports.checkpoint(self._checkpoints.message(committed))

    def commit(self, snapshot: Snapshot, at: Standing, fingerprint: str, put_off: bool) -> None:
        """Commits the snapshot. Without space it is put off, or, where it cannot be, space is waited for.

        Raises Interrupted, and Corrupted where the snapshot is not what it was.
        """
        snapshot.check()
        files, sha256 = self._files.tensors(snapshot)
        self._reports.sync()  # the points up to a checkpoint are durable before it
        while True:
            try:
                committed = self._checkpoints.commit(
                    at.step,
                    fingerprint,
                    files,
                    lambda records: self._files.manifest(records, at, fingerprint, sha256),
                    evaluated=at.evaluation_here is not None,
                )
            except NoSpace as full:
                self._committed_at = self._clock()
                if put_off and self._putting_off:
                    return  # said already; a cadence of few steps would say it for ever
                if put_off:
                    self._putting_off = True
                    text = f"step {at.step}: {full}; checkpoints are put off and training goes on. Free some space"
                    self._reports.notice(job.Notice.WARNING, "CHECKPOINT_DEFERRED", text)
                    return
                text = f"step {at.step}: {full}; the run waits until there is. Free some space"
                self._reports.recovering("CHECKPOINT_DEFERRED", text)
                if self._wanted.cancelled():
                    raise Interrupted from full
                self._wanted.wait(limits.RETRY_S)
                continue
            self._committed_at, self._putting_off = self._clock(), False
            self._reports.checkpoint(self._checkpoints.message(committed))
            failpoint("checkpoint.when_published", at.step, committed.folder)
            return

    def result(self) -> job.Result | None:
        """What the job gave so far."""
        return self._checkpoints.result()

    @property
    def kept(self) -> str:
        """What is left to take home, for people."""
        result = self.result()
        return f"the checkpoint of step {result.step} is kept" if result else "it has no checkpoint yet"
