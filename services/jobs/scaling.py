"""Another number of workers for a job that is there: new bounds, checked as at submission, and when they come into force."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from lockstep.contract.errors import UserError
from lockstep.internal.v1.agent_service_pb2 import RunOrder
from lockstep.v1.dataset_service_pb2 import DatasetSchema
from lockstep.v1.job_spec_pb2 import JobSpec, Workers
from lockstep.v1.training_job_pb2 import Plan, Run
from services.jobs import resolve
from services.jobs.checks import BatchShards
from services.jobs.plan import worker_memory
from worker.specs import architecture, loss_record, optimizer_record


def rescale(spec: JobSpec, plan: Plan, schema: DatasetSchema, asked: Workers) -> list[str]:
    """Puts the bounds that are given into a stored spec, and what follows into its Plan; gives a sentence where one is capped.

    Raises UserError.
    """
    if not (asked.HasField("min") or asked.HasField("max")):
        raise UserError.of("workers", "", "give min, max or both", "FIELD_REQUIRED")
    spec.workers.MergeFrom(asked)
    model = architecture(spec.model, tuple(schema.input_shape))
    shards = BatchShards.of(spec, model, plan.training_rows)
    least, most = spec.workers.min, spec.workers.max
    if least > most:
        raise _crossed(asked, least, most)
    if least > shards.filled:
        remedy = f"{shards.sentence} and a worker holds at least one; ask for at most {shards.filled}"
        raise UserError.of("workers.min", str(least), remedy, "WORKERS_ABOVE_SHARDS")
    capped = resolve.cap_workers(spec, shards)
    loss, optimizer = loss_record(spec.loss), optimizer_record(spec.optimizer)
    plan.worker_memory_bytes = worker_memory(spec, plan.training_rows, model, loss, optimizer)
    return capped


def _crossed(asked: Workers, least: int, most: int) -> UserError:
    reason = "WORKERS_OUT_OF_RANGE"
    if not asked.HasField("min"):
        return UserError.of("workers.max", str(most), f"it must be at least workers.min, {least}; give min as well", reason)
    also = "" if asked.HasField("max") else "; give max as well"
    return UserError.of("workers.min", str(least), f"it must be at most workers.max, {most}{also}", reason)


def still_true(warnings: list[str], asked: Workers) -> list[str]:
    """The warnings of a submission, or of the bounds before, that hold under the bounds that were asked for."""
    if not asked.HasField("max"):
        return warnings
    return [warning for warning in warnings if not warning.startswith(resolve.CAPPED)]


def wanted_slots(job: Row[Any], run: Row[Any]) -> int:
    """The slots that a run may use from now on: those it holds, but not more than the job may have by now."""
    return int(min(run.workers, job.workers_max))


def pending(job: Row[Any], run: Row[Any]) -> str:
    """A clause about new bounds that the job's run does not keep yet; empty where there is nothing to wait for."""
    began = RunOrder.FromString(run.run_order).spec.workers
    least, most, has = job.workers_min, job.workers_max, run.workers
    if (began.min, began.max) == (least, most) or least <= has == most:
        return ""
    message = Run.FromString(run.message)
    if not message.members:
        return f"its workers are being started; once they are it may have {bounds(least, most)}"
    if message.resizable:
        if has > most:
            return f"goes on with {workers(most)} after the stretch under way; it has {has}"
        return f"has {workers(has)} and may have {most}; it gets more as slots become free"
    return f"has {workers(has)}; from its next run on {bounds(least, most)}: pause and resume it to have that now"


def bounds(least: int, most: int) -> str:
    """Bounds of workers in words: "1 to 4 workers"."""
    return workers(most) if least == most else f"{least} to {workers(most)}"


def workers(count: int) -> str:
    """ "1 worker", "2 workers"."""
    return f"{count} worker{'' if count == 1 else 's'}"
