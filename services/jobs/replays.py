"""The submission of a job of kind VERIFY: which steps of which job are taken again, from which checkpoint."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from lockstep.contract.arithmetic import ARITHMETIC_VERSION
from lockstep.contract.errors import UserError
from lockstep.v1.dataset_service_pb2 import DatasetSchema
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import Plan, Replay, TrainingJob
from services.jobs.names import job_id
from services.jobs.submission import Submission, Version
from services.jobs.transitions import TERMINAL, State
from services.store import datasets as dataset_rows
from services.store import events
from services.store import jobs as rows

_RESTING = TERMINAL | {State.PAUSED}


def prepare_replay(connection: Connection, asked: TrainingJob) -> Submission:
    """Checks what is asked of a job of kind VERIFY against the job that it replays. Raises UserError."""
    if not asked.replay.job:
        raise UserError.of("replay.job", "", "a job of kind VERIFY needs the job that it replays", "FIELD_REQUIRED")
    if asked.spec.ByteSize():
        remedy = "a job of kind VERIFY takes the spec of the job that it replays; leave it out"
        raise UserError.of("spec", "", remedy, "SPEC_OF_REPLAY")
    row = _replayed(connection, asked.replay.job)
    version = _version(connection, row)
    plan = Plan.FromString(row.plan)
    plan.replay.CopyFrom(_resolved(connection, row, asked.replay, plan.total_steps))
    plan.checkpoint_bytes = 0
    spec = JobSpec.FromString(row.spec)
    spec.name = "verify"
    return Submission(
        kind=TrainingJob.VERIFY,
        spec=spec,
        plan=plan,
        version=version,
        arithmetic_digest=row.arithmetic_digest,
        warnings=[],
        fingerprint=fingerprint_of(connection, row),
    )


def still_replayable(connection: Connection, submission: Submission) -> None:
    """The replayed job may have been deleted, or gone on, since it was looked up. Raises UserError."""
    if submission.kind == TrainingJob.VERIFY:
        _replayed(connection, submission.plan.replay.job)


def replays_of(connection: Connection, identity: str) -> list[str]:
    """Jobs that have not ended and replay the job."""
    live = rows.live_of_kind(connection, TrainingJob.VERIFY)
    return [job.id for job in live if Plan.FromString(job.plan).replay.job == f"jobs/{identity}"]


def fingerprint_of(connection: Connection, row: Row[Any]) -> str:
    """The fingerprint of a job's checkpoints, or, before the first of them, of its last run; empty where none began."""
    last = [run.fingerprint for run in rows.runs_of(connection, row.id) if run.fingerprint]
    return str(row.fingerprint or (last[-1] if last else ""))


def _replayed(connection: Connection, name: str) -> Row[Any]:
    row = rows.find(connection, job_id(name))
    if row is None:
        raise UserError.of("replay.job", name, "there is no such job; `lockstep jobs` lists them", "JOB_NOT_FOUND")
    if row.kind != TrainingJob.TRAINING:
        kind = TrainingJob.Kind.Name(row.kind)
        raise UserError.of("replay.job", name, f"it is a {kind}; only a TRAINING can be replayed", "NOT_A_TRAINING")
    if State(row.state) not in _RESTING:
        raise UserError.of("replay.job", name, f"it is {row.state}; replay it when it has ended", "JOB_NOT_ENDED")
    if row.arithmetic_version != ARITHMETIC_VERSION:
        remedy = f"it was computed by version {row.arithmetic_version} of the arithmetic and this server computes by version "
        remedy += f"{ARITHMETIC_VERSION}, which gives other bits; replay it on a server of its release"
        raise UserError.of("replay.job", name, remedy, "OTHER_ARITHMETIC")
    return row


def _version(connection: Connection, row: Row[Any]) -> Version:
    found = dataset_rows.find_version(connection, row.dataset_id, row.dataset_digest)
    if found is None:
        remedy = f"its dataset, datasets/{row.dataset_id}@{row.dataset_digest[:8]}, was deleted; register the same file again"
        raise UserError.of("replay.job", f"jobs/{row.id}", remedy, "UNKNOWN_DATASET")
    return Version(row.dataset_id, row.dataset_digest, DatasetSchema.FromString(found.schema))


def _resolved(connection: Connection, row: Row[Any], asked: Replay, total_steps: int) -> Replay:
    """With the checkpoint that is compared, and the step after which it begins."""
    kept = [checkpoint.step for checkpoint in events.checkpoints_of(connection, row.id)]
    replay = Replay(job=asked.job, hashed_steps=sorted(set(asked.hashed_steps)))
    if asked.HasField("step") or not replay.hashed_steps:
        if not kept:
            remedy = f"the job is {row.state} and has no checkpoint to compare with"
            raise UserError.of("replay.job", asked.job, remedy, "NO_CHECKPOINT")
        replay.step = asked.step if asked.HasField("step") else kept[-1]
        if replay.step not in kept:
            remedy = f"there is no checkpoint of that step; kept are {', '.join(map(str, kept))}"
            raise UserError.of("replay.step", replay.step, remedy, "CHECKPOINT_NOT_FOUND")
    beyond = [step for step in replay.hashed_steps if step > total_steps]
    if beyond:
        raise UserError.of("replay.hashed_steps", beyond[0], f"the job has {total_steps:,} steps", "FIELD_OUT_OF_RANGE")
    first = min([*replay.hashed_steps, *([replay.step] if replay.HasField("step") else [])])
    replay.start_step = max((step for step in kept if step < first), default=0)
    return replay
