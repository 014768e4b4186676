"""Rows of events, points and checkpoints. Events of a job are numbered from 1; a progress event replaces the one before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from lockstep.v1.training_job_pb2 import Checkpoint, JobEvent, Points
from services.clock import timestamp
from services.store.tables import checkpoints, events, jobs, points


def append(connection: Connection, job_id: str, now: int, run_number: int = 0, **event: Any) -> int:
    """Stores one event, given as a field of JobEvent: `progress=...`. Returns its number."""
    if "progress" in event:
        connection.execute(delete(events).where(events.c.job_id == job_id, events.c.is_progress))
    return append_all(connection, job_id, now, run_number, [event])


def append_all(connection: Connection, job_id: str, now: int, run_number: int, fields: Sequence[dict[str, Any]]) -> int:
    """Stores events, at least one, of which none replaces another. Returns the number of the last."""
    before = int(connection.execute(select(jobs.c.last_event).where(jobs.c.id == job_id)).scalar_one())
    messages = [
        JobEvent(number=number, time=timestamp(now), run_number=run_number, **event)
        for number, event in enumerate(fields, before + 1)
    ]
    values = [
        {
            "job_id": job_id,
            "number": message.number,
            "is_progress": message.HasField("progress"),
            "message": message.SerializeToString(),
        }
        for message in messages
    ]
    connection.execute(insert(events), values)
    last = before + len(values)
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(last_event=last, update_time=now))
    return last


def after(connection: Connection, job_id: str, number: int, limit: int) -> list[JobEvent]:
    """The job's events behind a number, in order."""
    query = select(events.c.message).where(events.c.job_id == job_id, events.c.number > number)
    rows = connection.execute(query.order_by(events.c.number).limit(limit)).scalars()
    return [JobEvent.FromString(row) for row in rows]


def add_points(connection: Connection, job_id: str, messages: Sequence[Points]) -> tuple[list[Points], list[str]]:
    """Stores points of some steps; gives those that are new, and a sentence for each that came before with another value."""
    steps = [message.step for message in messages]
    query = select(points.c.step, points.c.name, points.c.value)
    query = query.where(points.c.job_id == job_id, points.c.step.between(min(steps), max(steps)))
    known = {(step, name): math.nan if value is None else value for step, name, value in connection.execute(query)}
    stored, new, differing = [], [], []
    for message in messages:
        fresh = Points(step=message.step, epoch=message.epoch)
        for point in message.points:
            if (message.step, point.name) not in known:
                known[message.step, point.name] = point.value
                fresh.points.append(point)
                value = None if math.isnan(point.value) else point.value
                stored.append({"job_id": job_id, "step": message.step, "name": point.name, "value": value})
            elif not _same(known[message.step, point.name], point.value):
                differing.append(
                    f"{point.name} of step {message.step} was {known[message.step, point.name]!r} and came again as "
                    f"{point.value!r}; the first is kept, and the runs of this job do not agree"
                )
        if fresh.points:
            new.append(fresh)
    if stored:
        connection.execute(insert(points), stored)
    return new, differing


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def add_checkpoint(
    connection: Connection, job_id: str, run_number: int, checkpoint: Checkpoint, keep: int
) -> tuple[Checkpoint, str]:
    """Publishes a checkpoint, marks the best and drops the rows of those that are not kept.

    Gives it as it now stands, and a sentence where it came before with other weights.
    """
    known = {item.step: item for item in checkpoints_of(connection, job_id)}
    differing, before = "", known.get(checkpoint.step, checkpoint)
    if before.weights_sha256 != checkpoint.weights_sha256:
        differing = (
            f"the checkpoint of step {checkpoint.step} was {before.weights_sha256} and came again as "
            f"{checkpoint.weights_sha256}; the runs of this job do not agree"
        )
    known[checkpoint.step] = checkpoint
    best = best_step(list(known.values()))
    kept = set(sorted(known)[-keep:]) | ({best} if best is not None else set())
    connection.execute(delete(checkpoints).where(checkpoints.c.job_id == job_id, checkpoints.c.step == checkpoint.step))
    connection.execute(
        insert(checkpoints).values(
            job_id=job_id, step=checkpoint.step, run_number=run_number, message=checkpoint.SerializeToString()
        )
    )
    for step, item in known.items():
        if step not in kept:
            connection.execute(delete(checkpoints).where(checkpoints.c.job_id == job_id, checkpoints.c.step == step))
        elif item.best != (step == best):
            item.best = step == best
            where = (checkpoints.c.job_id == job_id, checkpoints.c.step == step)
            connection.execute(update(checkpoints).where(*where).values(message=item.SerializeToString()))
    return known[checkpoint.step], differing


def drop_checkpoints_after(connection: Connection, job_id: str, step: int) -> None:
    """Those that a run has passed over are no checkpoints any more."""
    connection.execute(delete(checkpoints).where(checkpoints.c.job_id == job_id, checkpoints.c.step > step))


def best_step(items: list[Checkpoint]) -> int | None:
    """The step with the lowest finite validation loss, the earliest of equals."""
    evaluated = [item for item in items if item.HasField("validation_loss") and math.isfinite(item.validation_loss)]
    return min(evaluated, key=lambda item: (item.validation_loss, item.step)).step if evaluated else None


def checkpoints_of(connection: Connection, job_id: str) -> list[Checkpoint]:
    """Checkpoints that are kept, in the order of their steps."""
    query = select(checkpoints.c.message).where(checkpoints.c.job_id == job_id).order_by(checkpoints.c.step)
    return [Checkpoint.FromString(row) for row in connection.execute(query).scalars()]
