"""From rows to the TrainingJob that people see."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import Connection, Row

from lockstep.v1.training_job_pb2 import Checkpoint, Result, Run, TrainingJob
from services.clock import timestamp
from services.jobs.submission import Submission
from services.jobs.transitions import TERMINAL, State
from services.store import events
from services.store import jobs as rows


def job_message(connection: Connection, job: Row[Any], detail: str = "") -> TrainingJob:
    """The job as it stands. `detail` is what it waits for now, where somebody knows better than the row."""
    message = TrainingJob(
        name=f"jobs/{job.id}",
        kind=job.kind,
        state=TrainingJob.State.Value(job.state),
        status_detail=detail or job.detail,
        create_time=timestamp(job.create_time),
        update_time=timestamp(job.update_time),
        arithmetic_digest=job.arithmetic_digest,
        dataset_digest=job.dataset_digest,
        arithmetic_version=job.arithmetic_version,
        runs=[Run.FromString(run.message) for run in rows.runs_of(connection, job.id)],
        warnings=json.loads(job.warnings),
        etag=etag(job),
    )
    message.spec.ParseFromString(job.spec)
    message.plan.ParseFromString(job.plan)
    if message.plan.HasField("replay"):
        message.replay.CopyFrom(message.plan.replay)
    if job.start_time is not None:
        message.start_time.CopyFrom(timestamp(job.start_time))
    if job.end_time is not None:
        message.end_time.CopyFrom(timestamp(job.end_time))
    if job.progress is not None:
        message.progress.ParseFromString(job.progress)
    if State(job.state) in TERMINAL:
        result = result_of(job, events.checkpoints_of(connection, job.id))
        if result is not None:
            message.result.CopyFrom(result)
    return message


def etag(job: Row[Any]) -> str:
    """What changes with all that people do to the job, and with nothing that its runs do."""
    asked = {State.PAUSING: "rest", State.PAUSED: "rest", State.CANCELLING: "end", State.CANCELLED: "end"}.get(
        State(job.state), "run"
    )
    # The place in the queue is a new one after each resume.
    steered = f"{asked} {job.queue_position} {job.workers_min} {job.workers_max}"
    return hashlib.sha256(steered.encode()).hexdigest()[:16]


def result_of(job: Row[Any], checkpoints: list[Checkpoint]) -> Result | None:
    """What the job gave: its run's word, or what its last checkpoint says; None without either."""
    said = None if job.result is None else Result.FromString(job.result)
    if said is not None and (said.HasField("gradient_check") or said.HasField("replay")):
        return said
    if not checkpoints:
        return None
    last = checkpoints[-1]
    result = Result(step=last.step, weights_sha256=last.weights_sha256, fingerprint=job.fingerprint)
    if last.HasField("validation_loss"):
        result.validation_loss = last.validation_loss
    if said is not None and (said.step, said.weights_sha256) == (last.step, last.weights_sha256):
        result = said
    del result.checkpoints[:]
    result.checkpoints.extend(checkpoints)
    return result


def draft_message(job_id: str, submission: Submission) -> TrainingJob:
    """The job as it would be, for a request that only checks."""
    replay = submission.plan.replay if submission.plan.HasField("replay") else None
    return TrainingJob(
        name=f"jobs/{job_id}",
        kind=submission.kind,
        replay=replay,
        spec=submission.spec,
        plan=submission.plan,
        arithmetic_digest=submission.arithmetic_digest,
        dataset_digest=submission.version.digest,
        warnings=submission.warnings,
    )
