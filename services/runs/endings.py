"""What the end of a run means for its job: an end, a new run from the last checkpoint, or a bound on trying again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row

from lockstep.internal.v1.agent_service_pb2 import RunEnded
from lockstep.v1.training_job_pb2 import Progress, Run, TrainingJob
from services import limits
from services.clock import SECOND, timestamp
from services.jobs import lifecycle
from services.jobs.transitions import Event, InvalidTransition, State
from services.store import jobs as rows

_EVENTS: Final = {
    RunEnded.SUCCEEDED: Event.SUCCEED,
    RunEnded.FAILED: Event.FAIL,
    RunEnded.LOST: Event.LOSE,
    RunEnded.CANCELLED: Event.STOPPED,
    RunEnded.PAUSED: Event.RESTED,
}


def end_run(connection: Connection, job: Row[Any], run: Row[Any], ended: RunEnded, now: int) -> None:
    """Takes a run's last word into the store, and its job where that leads."""
    message = Run.FromString(run.message)
    count_rows(message, ended.computed_rows)
    message.last_step = max(message.last_step, ended.last_step)
    changes: dict[str, Any] = {"furthest_step": max(job.furthest_step, message.last_step)}
    if ended.HasField("result"):
        changes["result"] = ended.result.SerializeToString()
    rows.change(connection, job.id, **changes)
    event = _EVENTS.get(ended.outcome, Event.LOSE)
    _close(connection, job, run, message, ended.reason, now)
    _follow(connection, job, run, message, event, ended, now)


def lose_run(connection: Connection, job: Row[Any], run: Row[Any], reason: str, now: int) -> None:
    """A run that nobody runs and that has no last word is lost, by no fault of its own."""
    message = Run.FromString(run.message)
    _close(connection, job, run, message, reason, now)
    ended = RunEnded(outcome=RunEnded.LOST, reason=reason, cause=RunEnded.OUTSIDE)
    _follow(connection, job, run, message, Event.LOSE, ended, now)


def count_rows(message: Run, computed: Sequence[int]) -> None:
    """Takes over the rows that each worker computed; they never go backwards."""
    for member in message.members:
        if member.rank < len(computed):
            member.computed_rows = max(member.computed_rows, computed[member.rank])
    message.computed_rows = max(message.computed_rows, sum(computed))


def _close(connection: Connection, job: Row[Any], run: Row[Any], message: Run, reason: str, now: int) -> None:
    message.end_time.CopyFrom(timestamp(now))
    message.end_reason = reason
    rows.change_run(connection, job.id, run.run_number, active=False, message=message.SerializeToString())
    if job.progress is not None:
        # The next run counts its replayed rows from zero; what this one counted becomes the base.
        rows.change(connection, job.id, replayed_rows=Progress.FromString(job.progress).replayed_rows)


def _follow(
    connection: Connection, job: Row[Any], run: Row[Any], message: Run, event: Event, ended: RunEnded, now: int
) -> None:
    state, detail, own = State(job.state), ended.reason, ended.cause == RunEnded.OWN
    if state == State.CANCELLING:
        finished = event == Event.SUCCEED
        detail = f"cancelled; it had finished at step {message.last_step}" if finished else _cancelled(message)
    elif event == Event.SUCCEED:
        detail = ended.reason if job.kind == TrainingJob.VERIFY else ""  # it says what was compared
    elif event in (Event.STOPPED, Event.RESTED) and state != State.PAUSING:
        event, own = Event.LOSE, True  # it ended as if asked, but nobody had asked
    if state == State.PAUSING and event == Event.STOPPED:
        event = Event.RESTED
    if state == State.PAUSING and event == Event.LOSE:
        goes_on = lifecycle.goes_on_from(connection, job)
        detail = f"paused; its run was lost before it had written a checkpoint ({ended.reason}); {goes_on}"
    if event == Event.LOSE and state in (State.STARTING, State.RUNNING, State.RECOVERING):
        event, detail = _try_again(connection, job, message, ended.reason, own, now)
    try:
        lifecycle.move(connection, job, event, now, detail, run.run_number)
    except InvalidTransition as error:
        lifecycle.move(connection, job, Event.FAIL, now, f"{error}: {ended.reason}", run.run_number)


def _try_again(connection: Connection, job: Row[Any], message: Run, reason: str, own: bool, now: int) -> tuple[Event, str]:
    """A lost run is followed by a new one, unless the same cause of its own has stopped the job again and again."""
    cause = re.sub(r"\d+", "#", reason)
    # What a gradient check or a replay found is lost with its run: the next one begins again.
    if message.last_step > message.start_step and job.kind == TrainingJob.TRAINING:
        rows.change(connection, job.id, failure_cause=cause if own else "", failure_count=int(own), progress_time=now)
        return Event.LOSE, reason
    count = (job.failure_count + 1 if cause == job.failure_cause else 1) if own else job.failure_count
    rows.change(connection, job.id, failure_cause=cause if own else job.failure_cause, failure_count=count)
    if own and count >= limits.SAME_CAUSE_RUNS:
        return Event.FAIL, f"{reason} (so ended {count} runs, with no step between them)"
    waited = (now - job.progress_time) / SECOND
    if waited > limits.NO_PROGRESS_SECONDS:
        return Event.FAIL, f"{reason} (no run came further for {waited / 60:.0f} minutes)"
    return Event.LOSE, reason


def _cancelled(message: Run) -> str:
    return f"cancelled at step {message.last_step}" if message.last_step else "cancelled before the first step"
