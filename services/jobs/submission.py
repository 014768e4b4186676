"""A submission: everything about a job that is fixed before it is stored. Create, validate_only and Plan share it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from lockstep.contract.arithmetic import ARITHMETIC_VERSION, validation_count
from lockstep.contract.digests import arithmetic_digest
from lockstep.contract.errors import UserError, Violation, more
from lockstep.contract.rules import check
from lockstep.v1.dataset_service_pb2 import DatasetSchema
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import Plan, TrainingJob
from services import limits
from services.jobs import checks, resolve
from services.jobs.notes import notes
from services.jobs.plan import make_plan, of_gradient_check
from worker.nn.shapes import layer_shapes


@final
@dataclass(frozen=True, slots=True)
class Version:
    """A dataset version that a job names."""

    dataset_id: str
    digest: str
    schema: DatasetSchema


@final
@dataclass(frozen=True, slots=True)
class Submission:
    """A checked job with its defaults filled in."""

    kind: TrainingJob.Kind.ValueType
    spec: JobSpec
    plan: Plan
    version: Version
    arithmetic_digest: str
    warnings: list[str]
    fingerprint: str = ""  # on which it must run; empty where any will do


def kind_of(job: TrainingJob) -> TrainingJob.Kind.ValueType:
    """The kind that is asked for. Raises UserError where a job of another kind than VERIFY has a replay."""
    kind = job.kind or TrainingJob.TRAINING
    if job.HasField("replay") and kind != TrainingJob.VERIFY:
        raise UserError.of("replay", "", "only a job of kind VERIFY replays another; leave it out", "NOT_A_REPLAY")
    return kind


def prepare(
    asked: JobSpec,
    version: Version | None,
    known_datasets: Sequence[str] = (),
    kind: TrainingJob.Kind.ValueType = TrainingJob.TRAINING,
) -> Submission:
    """Checks and fills in a spec. `version` is the dataset that it names, None if there is none by that name.

    Raises UserError with everything that is wrong at once.
    """
    if asked.ByteSize() > limits.SPEC_BYTES:
        raise UserError.of("", f"{asked.ByteSize():,} bytes", f"a job has at most {limits.SPEC_BYTES:,} bytes", "JOB_TOO_LARGE")
    wrong = check(asked)
    spec = JobSpec()
    spec.CopyFrom(asked)
    if version is None and asked.dataset and not any(violation.place == "dataset" for violation in wrong):
        wrong.append(unknown_dataset(asked.dataset, known_datasets))
    resolve.fill(spec)
    wrong += checks.plateau(spec)
    model, loss, optimizer = checks.records(spec, version.schema if version else None, wrong)
    training_rows = None
    # A fraction that the rules refuse, not a number say, counts nothing.
    if version is not None and 0 <= spec.validation_fraction < 1:
        wrong += checks.split(spec, version.schema.rows)
        training_rows = version.schema.rows - validation_count(version.schema.rows, spec.validation_fraction)
    shards = checks.BatchShards.of(spec, model, training_rows)
    wrong += checks.workers(spec, shards)
    layers = layer_shapes(model) if model is not None and not wrong else []
    if layers:
        wrong += checks.learns(layers)
    if layers and version is not None and training_rows is not None and not wrong:
        wrong += checks.batch_statistics(spec, layers, training_rows)
        wrong += checks.indices(spec, layers, version.schema)
    wrong = _first_per_place(wrong)
    if wrong:
        rest = len(wrong) - limits.VIOLATIONS
        raise UserError([*wrong[: limits.VIOLATIONS], *([more(rest)] if rest > 0 else [])])
    assert version is not None and model is not None and loss is not None and optimizer is not None
    if kind == TrainingJob.GRADIENT_CHECK:
        spec.workers.min = spec.workers.max = 1
    warnings = resolve.cap_workers(spec, shards)
    resolve.fill_initializers(spec.model.layers, model.layers)
    plan = make_plan(spec, version.schema, model, loss, optimizer)
    if kind == TrainingJob.GRADIENT_CHECK:
        plan = of_gradient_check(plan, model)
    resolve.fill_evaluation(spec, plan.steps_per_epoch)
    spec.dataset = f"datasets/{version.dataset_id}@{version.digest}"
    return Submission(
        kind=kind,
        spec=spec,
        plan=plan,
        version=version,
        arithmetic_digest=arithmetic_digest(spec, version.digest, ARITHMETIC_VERSION),
        warnings=warnings + notes(spec, plan, layers, kind),
    )


def unknown_dataset(name: str, known: Sequence[str]) -> Violation:
    """The refusal of a dataset that is not there; likely names are offered."""
    short = name.removeprefix("datasets/")
    likely = difflib.get_close_matches(short.partition("@")[0], known, n=3)
    if short.partition("@")[0] in known:
        remedy = f"the dataset has no such version; `lockstep dataset show {short.partition('@')[0]}` lists them"
    else:
        names = " or ".join(f"datasets/{word}" for word in likely)
        guess = f"did you mean {names}? " if likely else ""
        remedy = f"there is no such dataset; {guess}`lockstep dataset push` registers one"
    return Violation("dataset", name, remedy, "UNKNOWN_DATASET")


def _first_per_place(wrong: Sequence[Violation]) -> list[Violation]:
    """The rules of the fields speak first; what is said again of the same place is left out."""
    seen: dict[str, Violation] = {}
    for violation in wrong:
        if not any(_within(place, violation.place) or _within(violation.place, place) for place in seen):
            seen[violation.place] = violation
    return list(seen.values())


def _within(inner: str, outer: str) -> bool:
    return inner == outer or (bool(outer) and inner.startswith((outer + ".", outer + "[")))
