"""What a run says, written into its spool as events."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import final

from coordinator import limits
from coordinator.spool import SpoolWriter
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import training_job_pb2 as job


def workers(count: int) -> str:
    """So many workers, for people."""
    return "1 worker" if count == 1 else f"{count} workers"


@final
class Reports:
    """The voice of one run. Progress is said at most about once a second, all else at once."""

    def __init__(
        self, spool: SpoolWriter, clock: Callable[[], float] = time.monotonic, on_started: Callable[[], None] = lambda: None
    ) -> None:
        self._spool = spool
        self._on_started = on_started
        self._clock = clock
        self._progress_at = -limits.PROGRESS_S
        self._unsaid: agent.RunProgress | None = None
        self._recovering = ""

    def started(self, members: Sequence[job.WorkerInfo], start_step: int, fingerprint: str, *, resizable: bool = False) -> None:
        """Workers joined and steps begin, or go on; `resizable` where more or fewer can do so later."""
        self._say_progress()
        self._recovering = ""
        started = agent.RunStarted(members=members, start_step=start_step, fingerprint=fingerprint, resizable=resizable)
        self._append(agent.RunEvent(started=started))
        self._on_started()

    def recovering(self, word: str, reason: str) -> None:
        """The run waits for what the reason says, under a word for programs; said once while the reason stays the same."""
        if reason != self._recovering:
            self._say_progress()
            self._recovering = reason
            self.notice(job.Notice.WARNING, word, reason)
            self._append(agent.RunEvent(recovering=agent.RunRecovering(reason=reason[: limits.REASON_CHARACTERS])))

    def points(self, step: int, epoch: int, values: Sequence[tuple[str, float]]) -> None:
        """Points of curves at one step."""
        points = [job.Point(name=name, value=value) for name, value in values]
        self._append(agent.RunEvent(points=job.Points(step=step, epoch=epoch, points=points)))

    def progress(self, progress: job.Progress, computed_rows: Sequence[int], last: bool = False) -> None:
        """Where the run is; `last` is said at once, another once its time or something that must not come before it has."""
        self._unsaid = agent.RunProgress(progress=progress, computed_rows=computed_rows)
        if last or self._clock() - self._progress_at >= limits.PROGRESS_S:
            self._say_progress()

    def checkpoint(self, checkpoint: job.Checkpoint) -> None:
        """A checkpoint is durable."""
        self._say_progress()
        self._append(agent.RunEvent(checkpoint=checkpoint))

    def notice(self, severity: job.Notice.Severity.ValueType, reason: str, text: str) -> None:
        """Something that people should know."""
        notice = job.Notice(severity=severity, reason=reason, text=text[: limits.REASON_CHARACTERS])
        self._append(agent.RunEvent(notice=notice))

    def ended(self, ended: agent.RunEnded) -> None:
        """The last word."""
        self._say_progress()
        ended.reason = ended.reason[: limits.REASON_CHARACTERS]
        self._append(agent.RunEvent(ended=ended))

    def sync(self) -> None:
        """Makes everything said durable."""
        self._spool.sync()

    def _say_progress(self) -> None:
        if self._unsaid is not None:
            said, self._unsaid = self._unsaid, None
            self._progress_at = self._clock()
            self._append(agent.RunEvent(progress=said))

    def _append(self, event: agent.RunEvent) -> None:
        self._spool.append(event)
