"""What happens to a job in the store: each function applies one event by the table and writes down what follows from it."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, Row

from lockstep.contract.arithmetic import ARITHMETIC_VERSION
from lockstep.contract.errors import UserError
from lockstep.internal.v1.agent_service_pb2 import RunOrder
from lockstep.v1.dataset_service_pb2 import DatasetSchema
from lockstep.v1.job_spec_pb2 import JobSpec, Workers
from lockstep.v1.training_job_pb2 import Notice, Plan, Run, StateChange, TrainingJob
from services import limits
from services.clock import timestamp
from services.jobs import scaling
from services.jobs.replays import replays_of
from services.jobs.submission import Submission
from services.jobs.transitions import LIVE, TERMINAL, Event, InvalidTransition, State, next_state
from services.store import datasets as dataset_rows
from services.store import events
from services.store import jobs as rows


def create(connection: Connection, job_id: str, submission: Submission, now: int) -> None:
    """Stores a new job, QUEUED. Raises UserError if the id is taken or there are too many jobs."""
    if rows.find(connection, job_id) is not None:
        raise UserError.of("training_job_id", job_id, "there is a job of that name; choose another", "JOB_EXISTS")
    if rows.is_being_removed(connection, job_id):
        remedy = "files of a deleted job of that name are still being removed; choose another, or try again later"
        raise UserError.of("training_job_id", job_id, remedy, "JOB_BEING_REMOVED")
    counts = rows.counts(connection)
    if sum(counts.get(state, 0) for state in LIVE) >= limits.LIVE_JOBS:
        raise UserError.of("", "", f"{limits.LIVE_JOBS:,} jobs have not ended; try again when some have", "TOO_MANY_LIVE_JOBS")
    if sum(counts.values()) >= limits.JOBS:
        raise UserError.of("", "", f"there are {limits.JOBS:,} jobs; delete some that have ended", "TOO_MANY_JOBS")
    rows.add(connection, dict(submission.spec.labels), job_values(job_id, submission, now))
    _announce(connection, job_id, State.QUEUED, "", now)


def job_values(job_id: str, submission: Submission, now: int) -> dict[str, Any]:
    """The columns of a new job."""
    return {
        "id": job_id,
        "kind": submission.kind,
        "state": State.QUEUED,
        "create_time": now,
        "update_time": now,
        "progress_time": now,
        "arithmetic_digest": submission.arithmetic_digest,
        "arithmetic_version": ARITHMETIC_VERSION,
        "fingerprint": submission.fingerprint,
        "dataset_id": submission.version.dataset_id,
        "dataset_digest": submission.version.digest,
        "spec": submission.spec.SerializeToString(deterministic=True),
        "plan": submission.plan.SerializeToString(deterministic=True),
        "warnings": json.dumps(submission.warnings),
        "workers_min": submission.spec.workers.min,
        "workers_max": submission.spec.workers.max,
    }


def move(connection: Connection, job: Row[Any], event: Event, now: int, detail: str = "", run_number: int = 0) -> State:
    """Takes a job where the event leads and announces it. Raises InvalidTransition."""
    state = next_state(State(job.state), event)
    if (state, detail) == (job.state, job.detail) or (state == job.state and event in (Event.CANCEL, Event.PAUSE)):
        return state
    values: dict[str, Any] = {"state": state, "detail": detail}
    if state in TERMINAL:
        values["end_time"] = now
    if state == State.QUEUED:
        values["queue_position"] = rows.next_position(connection)
    rows.change(connection, job.id, **values)
    _announce(connection, job.id, state, detail, now, run_number)
    return state


def grant(connection: Connection, job_id: str, workers: int, now: int) -> None:
    """Gives a job slots, and so a new run."""
    job = must_find(connection, job_id)
    number = job.run_number + 1
    order = RunOrder(
        job_id=job_id,
        run_number=number,
        kind=job.kind,
        arithmetic_digest=job.arithmetic_digest,
        dataset_digest=job.dataset_digest,
        arithmetic_version=job.arithmetic_version,
        workers=workers,
        fingerprint=job.fingerprint,
        furthest_step=job.furthest_step,
    )
    order.spec.ParseFromString(job.spec)
    order.plan.ParseFromString(job.plan)
    checkpoints_of = order.plan.replay.job.removeprefix("jobs/") or job_id
    for checkpoint in events.checkpoints_of(connection, checkpoints_of):
        order.acknowledged[checkpoint.step] = checkpoint.weights_sha256
    rows.add_run(connection, order, Run(run_number=number, workers=workers, start_time=timestamp(now)))
    values: dict[str, Any] = {"run_number": number, "start_time": job.start_time or now}
    if job.state == State.QUEUED:
        values["progress_time"] = now  # the time in the queue is no time without progress
    rows.change(connection, job_id, **values)
    detail = f"run {number} starts with {scaling.workers(workers)}"
    move(connection, job, Event.GRANT, now, detail, number)


def cancel(connection: Connection, job_id: str, now: int) -> None:
    """Asks for a job's end. A job without a run has ended at once. Raises UserError where the state does not allow it."""
    job = must_find(connection, job_id)
    run = rows.active_run(connection, job_id)
    if run is not None:
        detail = "workers are being stopped"
    elif job.state == State.PAUSED:
        detail = "cancelled while it was paused"
    else:
        detail = "cancelled between two runs" if job.run_number else "cancelled before it started"
    state = asked(connection, job, Event.CANCEL, now, detail)
    if state == State.CANCELLING and run is None:
        move(connection, must_find(connection, job_id), Event.STOPPED, now, detail)


def pause(connection: Connection, job_id: str, now: int) -> None:
    """Asks for a rest. A job without a run rests at once. Raises UserError where the state does not allow it."""
    job = must_find(connection, job_id)
    if rows.active_run(connection, job_id) is not None:
        asked(connection, job, Event.PAUSE, now, "the stretch under way ends, then a checkpoint is written")
        return
    detail = f"paused; {goes_on_from(connection, job)}"
    state = asked(connection, job, Event.PAUSE, now, detail)
    if state == State.PAUSING:
        move(connection, must_find(connection, job_id), Event.RESTED, now, detail)


def resume(connection: Connection, job_id: str, now: int, workers: Workers | None, accept_new_arithmetic: bool) -> None:
    """Puts a paused job back into the queue, with other bounds of its workers where they are given. Raises UserError."""
    job = must_find(connection, job_id)
    if job.state == State.PAUSED and job.arithmetic_version != ARITHMETIC_VERSION:
        remedy = f"the job began with arithmetic version {job.arithmetic_version} and this server has version "
        remedy += f"{ARITHMETIC_VERSION}: its weights would be those of neither; "
        if accept_new_arithmetic:
            raise UserError.of("accept_new_arithmetic", "", f"{remedy}going on over such a seam is not built yet", "NOT_BUILT")
        raise UserError.of("name", f"jobs/{job_id}", f"{remedy}submit it again", "ARITHMETIC_CHANGED")
    if job.state == State.PAUSING:
        remedy = "it is still pausing; it can be resumed as soon as it is PAUSED, and nothing was changed"
        raise UserError.of("name", f"jobs/{job_id}", remedy, "WRONG_STATE")
    if job.state == State.PAUSED:
        _refuse_if_replayed(connection, job_id)
    asked(connection, job, Event.RESUME, now, f"resumed; {goes_on_from(connection, job)}")
    # Whoever resumes a job has looked at why it failed.
    rows.change(connection, job_id, failure_cause="", failure_count=0)
    if workers is not None:
        scale(connection, job_id, workers, now)


def scale(connection: Connection, job_id: str, workers: Workers, now: int) -> None:
    """Changes the bounds of a job's workers, and tells its watchers. Raises UserError, and nothing is changed."""
    job = must_find(connection, job_id)
    asked(connection, job, Event.SCALE, now, job.detail)
    if job.kind != TrainingJob.TRAINING:
        remedy = "only a training job can be scaled; a gradient check runs on one worker, a replay as its training did"
        raise UserError.of("workers", "", remedy, "WORKERS_OUT_OF_RANGE")
    spec, plan = JobSpec.FromString(job.spec), Plan.FromString(job.plan)
    schema = DatasetSchema.FromString(dataset_rows.schema_of(connection, job.dataset_digest))
    before = (spec.workers.min, spec.workers.max)
    capped = scaling.rescale(spec, plan, schema, workers)
    after = (spec.workers.min, spec.workers.max)
    rows.change(
        connection,
        job_id,
        spec=spec.SerializeToString(deterministic=True),
        plan=plan.SerializeToString(deterministic=True),
        workers_min=spec.workers.min,
        workers_max=spec.workers.max,
        warnings=json.dumps(scaling.still_true(json.loads(job.warnings), workers) + capped),
    )
    if after != before:
        text = "; ".join([f"scaled to {scaling.bounds(*after)}; before it was {scaling.bounds(*before)}", *capped])
        events.append(connection, job_id, now, notice=Notice(severity=Notice.INFO, reason="SCALED", text=text))


def goes_on_from(connection: Connection, job: Row[Any]) -> str:
    """A clause: where the job's next run begins."""
    kept = events.checkpoints_of(connection, job.id)
    return f"it goes on from the checkpoint of step {kept[-1].step}" if kept else "it begins with the first step"


def delete(connection: Connection, job_id: str, now: int) -> None:
    """Removes an ended job. Raises UserError if it has not ended, or is replayed."""
    job = must_find(connection, job_id)
    if State(job.state) not in TERMINAL or rows.active_run(connection, job_id) is not None:
        raise UserError.of("name", f"jobs/{job_id}", f"the job is {job.state}; cancel it first", "JOB_NOT_ENDED")
    _refuse_if_replayed(connection, job_id)
    rows.remove(connection, job_id, now)


def _refuse_if_replayed(connection: Connection, job_id: str) -> None:
    """A replay reads the job's checkpoints: they have to stay, and no others may come. Raises UserError."""
    replaying = replays_of(connection, job_id)
    if replaying:
        remedy = f"jobs/{replaying[0]} replays it and reads its checkpoints; cancel that first, or wait for its end"
        raise UserError.of("name", f"jobs/{job_id}", remedy, "JOB_IN_USE")


def asked(connection: Connection, job: Row[Any], event: Event, now: int, detail: str) -> State:
    """Applies what a person asked. Raises UserError that names the state."""
    try:
        return move(connection, job, event, now, detail)
    except InvalidTransition as error:
        raise UserError.of("name", f"jobs/{job.id}", f"{error}; nothing was changed", "WRONG_STATE") from None


def must_find(connection: Connection, job_id: str) -> Row[Any]:
    """The job's row. Raises UserError if there is none."""
    job = rows.find(connection, job_id)
    if job is None:
        raise UserError.of("name", f"jobs/{job_id}", "there is no such job; `lockstep jobs` lists them", "JOB_NOT_FOUND")
    return job


def _announce(connection: Connection, job_id: str, state: State, detail: str, now: int, run_number: int = 0) -> None:
    change = StateChange(state=TrainingJob.State.Value(state), detail=detail)
    events.append(connection, job_id, now, run_number, state_change=change)
