"""Rows of jobs, their labels and their runs. Everything here runs inside Store.run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, exists, func, insert, or_, select, update

from lockstep.internal.v1.agent_service_pb2 import RunOrder
from lockstep.v1.training_job_pb2 import Run
from services.jobs.transitions import LIVE, State
from services.store.tables import dataset_versions, job_labels, jobs, removals, runs


def find(connection: Connection, job_id: str) -> Row[Any] | None:
    """The job's row, or None."""
    return connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()


def add(connection: Connection, labels: dict[str, str], values: dict[str, Any]) -> None:
    """A new job at the end of the queue."""
    connection.execute(insert(jobs).values(queue_position=next_position(connection), **values))
    if labels:
        rows = [{"job_id": values["id"], "key": key, "value": value} for key, value in labels.items()]
        connection.execute(insert(job_labels), rows)


def change(connection: Connection, job_id: str, **values: Any) -> None:
    """Sets columns of a job."""
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))


def remove(connection: Connection, job_id: str, now: int) -> None:
    """Removes a job with all that hangs on it; its folder of checkpoints is put on the list of removals."""
    connection.execute(delete(jobs).where(jobs.c.id == job_id))
    connection.execute(insert(removals).values(job_id=job_id, create_time=now))


def next_position(connection: Connection) -> int:
    """A place behind everybody who ever queued."""
    return int(connection.execute(select(func.coalesce(func.max(jobs.c.queue_position), 0))).scalar_one()) + 1


def is_being_removed(connection: Connection, job_id: str) -> bool:
    """Whether the files of an earlier job of that name may still stand."""
    return connection.execute(select(removals.c.job_id).where(removals.c.job_id == job_id)).first() is not None


def removals_left(connection: Connection, limit: int) -> list[str]:
    """Jobs whose files are to be removed, oldest first."""
    return list(connection.execute(select(removals.c.job_id).order_by(removals.c.create_time).limit(limit)).scalars())


def forget_removals(connection: Connection, job_ids: Sequence[str]) -> None:
    """Their files are gone."""
    connection.execute(delete(removals).where(removals.c.job_id.in_(job_ids)))


def waiting(connection: Connection) -> list[Row[Any]]:
    """Jobs without a run that want one: id, state, workers_min, workers_max, in the order of the queue."""
    has_run = exists().where(runs.c.job_id == jobs.c.id, runs.c.active)
    wants = or_(jobs.c.state == State.QUEUED, and_(jobs.c.state == State.RECOVERING, ~has_run))
    columns = (jobs.c.id, jobs.c.state, jobs.c.workers_min, jobs.c.workers_max)
    return list(connection.execute(select(*columns).where(wants).order_by(jobs.c.queue_position)))


def counts(connection: Connection) -> dict[str, int]:
    """How many jobs are in each state."""
    rows = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state)).all()
    return {str(state): int(count) for state, count in rows}


def live(connection: Connection) -> list[Row[Any]]:
    """Jobs that have not ended."""
    return list(connection.execute(select(jobs).where(jobs.c.state.in_(LIVE)).order_by(jobs.c.queue_position)))


def excuse(connection: Connection, since: int, now: int) -> None:
    """From `since` on no run could come further: that time does not count as one without progress. 0: however long it was."""
    time = jobs.c.progress_time + (now - since) if since else now
    connection.execute(update(jobs).where(jobs.c.state.in_(LIVE)).values(progress_time=time))


def live_of_kind(connection: Connection, kind: int) -> list[Row[Any]]:
    """Jobs of a kind that have not ended."""
    return list(connection.execute(select(jobs).where(jobs.c.state.in_(LIVE), jobs.c.kind == kind)))


def page(
    connection: Connection, condition: ColumnElement[bool] | None, descending: bool, after: tuple[int, str] | None, size: int
) -> list[Row[Any]]:
    """Up to `size` jobs by (create_time, id) behind `after`."""
    query = select(jobs)
    if condition is not None:
        query = query.where(condition)
    time, identity = jobs.c.create_time, jobs.c.id
    if after is not None:
        beyond = time < after[0] if descending else time > after[0]
        beyond_id = identity < after[1] if descending else identity > after[1]
        query = query.where(or_(beyond, and_(time == after[0], beyond_id)))
    order = (time.desc(), identity.desc()) if descending else (time, identity)
    return list(connection.execute(query.order_by(*order).limit(size)))


def label_is(key: str, value: str) -> ColumnElement[bool]:
    """A condition: the job has the label with that value."""
    return exists().where(job_labels.c.job_id == jobs.c.id, job_labels.c.key == key, job_labels.c.value == value)


def users_of_dataset(connection: Connection, dataset_id: str) -> list[str]:
    """Ids of jobs that have not ended and read a dataset, or a version that it shares with another name; a few."""
    shared = select(dataset_versions.c.digest).where(dataset_versions.c.dataset_id == dataset_id)
    elsewhere = select(dataset_versions.c.digest).where(dataset_versions.c.dataset_id != dataset_id)
    reads = or_(
        jobs.c.dataset_id == dataset_id, and_(jobs.c.dataset_digest.in_(shared), jobs.c.dataset_digest.not_in(elsewhere))
    )
    query = select(jobs.c.id).where(reads, jobs.c.state.in_(LIVE))
    return list(connection.execute(query.order_by(jobs.c.create_time).limit(5)).scalars())


def runs_of(connection: Connection, job_id: str) -> list[Row[Any]]:
    """The runs of a job, in order."""
    return list(connection.execute(select(runs).where(runs.c.job_id == job_id).order_by(runs.c.run_number)))


def find_run(connection: Connection, job_id: str, run_number: int) -> Row[Any] | None:
    """One run, or None."""
    return connection.execute(select(runs).where(runs.c.job_id == job_id, runs.c.run_number == run_number)).one_or_none()


def active_run(connection: Connection, job_id: str) -> Row[Any] | None:
    """The run that was granted and is not known to have ended."""
    return connection.execute(select(runs).where(runs.c.job_id == job_id, runs.c.active)).one_or_none()


def active_runs(connection: Connection) -> list[Row[Any]]:
    """All runs that hold slots."""
    return list(connection.execute(select(runs).where(runs.c.active).order_by(runs.c.job_id)))


def add_run(connection: Connection, order: RunOrder, run: Run) -> None:
    """A granted run."""
    connection.execute(
        insert(runs).values(
            job_id=order.job_id,
            run_number=order.run_number,
            workers=order.workers,
            active=True,
            run_order=order.SerializeToString(deterministic=True),
            message=run.SerializeToString(),
        )
    )


def hold(connection: Connection, job_id: str, workers: int) -> None:
    """The job's run holds so many slots from now on."""
    connection.execute(update(runs).where(runs.c.job_id == job_id, runs.c.active).values(workers=workers))


def change_run(connection: Connection, job_id: str, run_number: int, **values: Any) -> None:
    """Sets columns of a run."""
    connection.execute(update(runs).where(runs.c.job_id == job_id, runs.c.run_number == run_number).values(**values))
