"""Applies what a run reports: each (run, sequence) exactly once and in order; runs that are over are not heard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, final

from sqlalchemy import Connection, Row

from lockstep.internal.v1.agent_service_pb2 import RunEvent
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import Notice, Progress, Run, TrainingJob
from services.clock import timestamp
from services.jobs import lifecycle
from services.jobs.transitions import Event, InvalidTransition, State
from services.runs import endings
from services.store import events
from services.store import jobs as rows

_STEPPING = (State.STARTING, State.RUNNING, State.RECOVERING, State.PAUSING, State.CANCELLING)


@final
class Gap(Exception):
    """A sequence number is missing: the agent must send again what lies behind `last`."""

    def __init__(self, job_id: str, run_number: int, last: int, got: int) -> None:
        self.key = (job_id, run_number, got)
        super().__init__(job_id, run_number, last, got)

    def __str__(self) -> str:
        job_id, run_number, last, got = self.args
        return f"run {run_number} of jobs/{job_id}: event {got} came after event {last}"


def apply(
    connection: Connection, said: Iterable[RunEvent], now: int, gap_allowed: Callable[[RunEvent], bool] = lambda event: False
) -> list[str]:
    """Applies events; gives the jobs that they changed. One that came before, or of a run that is over, changes nothing.

    Raises Gap when one is missing before another, unless that is allowed.
    """
    changed = []
    for _, group in groupby(said, _together):
        together = list(group)
        if _apply(connection, together, now, gap_allowed):
            changed.append(together[0].run.job_id)
    return changed


def _together(event: RunEvent) -> tuple[str, int, int]:
    """Events in a row with the same key are applied in one go: the points of a run, of which some hundreds come a second."""
    return event.run.job_id, event.run.run_number, 0 if event.HasField("points") else event.sequence


def _apply(connection: Connection, said: list[RunEvent], now: int, gap_allowed: Callable[[RunEvent], bool]) -> bool:
    key = said[0].run
    job = rows.find(connection, key.job_id)
    run = rows.find_run(connection, key.job_id, key.run_number)
    if job is None or run is None:
        return False
    fresh, last = [], run.last_sequence
    for event in said:
        if event.sequence > last:
            if event.sequence > last + 1 and not gap_allowed(event):
                raise Gap(job.id, run.run_number, last, event.sequence)
            fresh.append(event)
            last = event.sequence
    if not fresh:
        return False
    rows.change_run(connection, job.id, run.run_number, last_sequence=last)
    if not run.active or run.run_number != job.run_number or State(job.state) not in _STEPPING:
        return False
    kind = fresh[0].WhichOneof("event")
    if kind == "points":
        _points(connection, job, run, fresh, now)
    elif kind is not None and kind in _HANDLERS:
        _HANDLERS[kind](connection, job, run, fresh[0], now)
    return True


def _started(connection: Connection, job: Row[Any], run: Row[Any], event: RunEvent, now: int) -> None:
    said, message = event.started, Run.FromString(run.message)
    if not message.members:
        message.start_step = said.start_step
    computed = {(member.node, member.pid): member.computed_rows for member in message.members}
    del message.members[:]
    for member in said.members:
        message.members.add().CopyFrom(member)
        message.members[-1].computed_rows = max(member.computed_rows, computed.get((member.node, member.pid), 0))
    message.workers, message.resizable = max(message.workers, len(said.members)), said.resizable
    message.last_step = max(message.last_step, said.start_step)
    rows.change_run(connection, job.id, run.run_number, message=message.SerializeToString(), fingerprint=said.fingerprint)
    if job.kind == TrainingJob.TRAINING:  # a newer one was found damaged, and passed over
        events.drop_checkpoints_after(connection, job.id, said.start_step)
    if said.start_step and job.state == State.STARTING and run.run_number > 1:
        text = f"run {run.run_number} goes on from the checkpoint of step {said.start_step}"
        _notice(connection, job, run, now, Notice(severity=Notice.INFO, reason="RESUMED", text=text))
    lifecycle.move(connection, job, Event.START, now, _kept_detail(job), run.run_number)


def _recovering(connection: Connection, job: Row[Any], run: Row[Any], event: RunEvent, now: int) -> None:
    detail = _kept_detail(job) or event.recovering.reason
    lifecycle.move(connection, job, Event.RECOVER, now, detail, run.run_number)


def _progress(connection: Connection, job: Row[Any], run: Row[Any], event: RunEvent, now: int) -> None:
    said, message = event.progress, Run.FromString(run.message)
    progress = Progress()
    progress.CopyFrom(said.progress)
    progress.applied_rows = max(job.applied_rows, progress.applied_rows)
    progress.replayed_rows += job.replayed_rows
    if job.progress is not None:  # a run from a checkpoint comes to the same steps again
        progress.skipped_steps = max(progress.skipped_steps, Progress.FromString(job.progress).skipped_steps)
    endings.count_rows(message, said.computed_rows)
    message.last_step = max(message.last_step, progress.step)
    rows.change_run(connection, job.id, run.run_number, message=message.SerializeToString())
    # Each run of a gradient check or a replay begins again: it comes further only beyond all earlier ones.
    moved = progress.step > (message.start_step if job.kind == TrainingJob.TRAINING else job.furthest_step)
    rows.change(
        connection,
        job.id,
        progress=progress.SerializeToString(),
        applied_rows=progress.applied_rows,
        furthest_step=max(job.furthest_step, progress.step),
        progress_time=now if moved else job.progress_time,
    )
    events.append(connection, job.id, now, run.run_number, progress=progress)


def _points(connection: Connection, job: Row[Any], run: Row[Any], said: Sequence[RunEvent], now: int) -> None:
    fresh, differing = events.add_points(connection, job.id, [event.points for event in said])
    if fresh:
        events.append_all(connection, job.id, now, run.run_number, [{"points": points} for points in fresh])
    for text in differing:
        _notice(connection, job, run, now, Notice(severity=Notice.ERROR, reason="CORRUPTION_DETECTED", text=text))


def _checkpoint(connection: Connection, job: Row[Any], run: Row[Any], event: RunEvent, now: int) -> None:
    message = event.checkpoint
    if not message.HasField("create_time"):
        message.create_time.CopyFrom(event.time if event.HasField("time") else timestamp(now))
    keep = JobSpec.FromString(job.spec).checkpoints.keep
    message, differing = events.add_checkpoint(connection, job.id, run.run_number, message, keep)
    if differing:
        _notice(connection, job, run, now, Notice(severity=Notice.ERROR, reason="CORRUPTION_DETECTED", text=differing))
    if not job.fingerprint and run.fingerprint:
        rows.change(connection, job.id, fingerprint=run.fingerprint)
    events.append(connection, job.id, now, run.run_number, checkpoint=message)


def _said_notice(connection: Connection, job: Row[Any], run: Row[Any], event: RunEvent, now: int) -> None:
    _notice(connection, job, run, now, event.notice)


def _ended(connection: Connection, job: Row[Any], run: Row[Any], event: RunEvent, now: int) -> None:
    endings.end_run(connection, job, run, event.ended, now)


def _notice(connection: Connection, job: Row[Any], run: Row[Any], now: int, notice: Notice) -> None:
    events.append(connection, job.id, now, run.run_number, notice=notice)


def _kept_detail(job: Row[Any]) -> str:
    """A pause or a cancel under way goes on saying so."""
    return str(job.detail) if job.state in (State.PAUSING, State.CANCELLING) else ""


# Of one event each; points, of which several are applied in one go, have their own.
_HANDLERS = {
    "started": _started,
    "progress": _progress,
    "checkpoint": _checkpoint,
    "notice": _said_notice,
    "recovering": _recovering,
    "ended": _ended,
}


def lose(connection: Connection, job_id: str, run_number: int, reason: str, now: int) -> None:
    """A run that nobody runs any more, although it never said that it ended."""
    job, run = rows.find(connection, job_id), rows.find_run(connection, job_id, run_number)
    if job is None or run is None or not run.active:
        return
    try:
        endings.lose_run(connection, job, run, reason, now)
    except InvalidTransition:
        rows.change_run(connection, job_id, run_number, active=False)
