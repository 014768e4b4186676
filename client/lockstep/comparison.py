"""Two jobs compared: what differs in what was asked, in what is recorded of them, and the step at which their weights part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from lockstep.contract.digests import DECIDING_FIELDS, canonical, uses_controller
from lockstep.v1 import training_job_pb2

# Steps whose weights one replay hashes.
HASHED_STEPS = 200

# Has a job's steps taken again: (job, steps) gives what was hashed after each of them.
HashSteps = Callable[[str, Sequence[int]], Sequence[training_job_pb2.ReplayedStep]]


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """A field that two jobs do not share; "" where one has not set it. `decides` says whether weights depend on it."""

    field: str
    one: str
    other: str
    decides: bool


@final
@dataclass(frozen=True, slots=True)
class Recorded:
    """What a server keeps of a job: the losses of the steps on its curve, the weights_sha256 of its checkpoints."""

    name: str
    losses: Mapping[int, float]
    weights: Mapping[int, str]
    last_step: int

    @classmethod
    def of(cls, job: training_job_pb2.TrainingJob, events: Iterator[training_job_pb2.JobEvent]) -> Recorded:
        """Of an ended job and all its events, whose checkpoints count even where their files are gone."""
        losses, weights = {}, {one.step: one.weights_sha256 for one in job.result.checkpoints}
        for event in events:
            for point in event.points.points:
                if point.name == "loss":
                    losses[event.points.step] = point.value
            if event.HasField("checkpoint"):
                weights[event.checkpoint.step] = event.checkpoint.weights_sha256
        last = max([job.progress.step, *losses, *weights])
        return cls(job.name, losses, weights, last)


@final
@dataclass(slots=True)
class Parting:
    """Where the weights of two jobs part.

    `step` is the first step whose weights differ, None where none up to `same_step` does; `weights` are both hashes after it,
    and `same_weights` the one after the step before. `doubted` holds (job, step) where a job's recorded weights are not what
    its replay gave.
    """

    step: int | None = None
    same_step: int = -1
    weights: tuple[str, str] = ("", "")
    same_weights: str = ""
    doubted: list[tuple[str, int]] = field(default_factory=list)


def differences(one: training_job_pb2.TrainingJob, other: training_job_pb2.TrainingJob) -> list[Difference]:
    """What differs in what was asked, field by field, and in what computed it; first what decides the weights."""
    first, second = _fields(one), _fields(other)
    deciding = [*DECIDING_FIELDS, "arithmetic_version", "fingerprint"]
    if uses_controller(one.spec) or uses_controller(other.spec):
        deciding.append("evaluation")
    if one.dataset_digest != other.dataset_digest:  # else it has another name at most
        deciding.append("dataset")
    found = []
    for name in {**first, **second}:
        mine, theirs = first.get(name), second.get(name)
        if mine != theirs:
            decides = any(name == top or name.startswith((f"{top}.", f"{top}[")) for top in deciding)
            found.append(Difference(name, _text(mine), _text(theirs), decides))
    return sorted(found, key=lambda difference: not difference.decides)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def same_function(one: training_job_pb2.TrainingJob, other: training_job_pb2.TrainingJob) -> bool:
    """Whether both jobs have the same weights after each step by what was asked and where it ran."""
    return one.arithmetic_digest == other.arithmetic_digest and fingerprint(one) == fingerprint(other) != ""


def fingerprint(job: training_job_pb2.TrainingJob) -> str:
    """That of the nodes that computed the job, as far as it is known."""
    members = [member.fingerprint for run in job.runs for member in run.members]
    return job.result.fingerprint or (members[-1] if members else "")


def _fields(job: training_job_pb2.TrainingJob) -> dict[str, Any]:
    spec = canonical(job.spec)
    spec.pop("name", None)
    return {
        **dict(_leaves(spec, "")),
        "arithmetic_version": job.arithmetic_version,
        "fingerprint": fingerprint(job),
    }


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else key)
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{place}[{index}]")
    else:
        yield place, "{}" if value == {} else value


def first_loss_apart(one: Recorded, other: Recorded) -> int | None:
    """The first step on both curves whose losses differ."""
    steps = sorted(one.losses.keys() & other.losses.keys())
    return next((step for step in steps if not _same(one.losses[step], other.losses[step])), None)


def first_weights_apart(one: Recorded, other: Recorded) -> int | None:
    """The first step with a checkpoint of both whose weights differ."""
    steps = sorted(one.weights.keys() & other.weights.keys())
    return next((step for step in steps if one.weights[step] != other.weights[step]), None)


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def find_parting(one: Recorded, other: Recorded, hash_steps: HashSteps) -> Parting:
    """The first step whose weights differ, between recorded points by replay: the steps between what is known to be the same
    and what is known or suspected to differ are hashed, at most HASHED_STEPS at once, until two neighbours are left."""
    last = min(one.last_step, other.last_step)
    apart, loss = first_weights_apart(one, other), first_loss_apart(one, other)
    equal = [step for step in one.weights if one.weights[step] == other.weights.get(step) and step < (apart or last + 1)]
    low = max(equal, default=-1)
    parting = Parting(same_step=low, same_weights=one.weights.get(low, ""))
    bound = last if apart is None else min(apart, last)
    high = loss if loss is not None and low < loss < bound else bound
    # A loss is of the weights before its step: where the last equal one was taken they were the same, most likely.
    agreed_losses = [step for step in one.losses if step in other.losses and step < (loss or last + 1) and step <= high]
    guess = max(low + 1, max(agreed_losses, default=0) - 1)
    while low < high:
        steps = _spread(guess, high)
        mine, theirs = hash_steps(one.name, steps), hash_steps(other.name, steps)
        _doubt(parting, one, mine)
        _doubt(parting, other, theirs)
        pairs = [(a.weights_sha256, b.weights_sha256) for a, b in zip(mine, theirs, strict=True)]
        place = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
        agreed = len(steps) if place is None else place
        if agreed:
            low = parting.same_step = steps[agreed - 1]
            parting.same_weights = pairs[agreed - 1][0]
        if place is None:
            high = bound  # the losses suspected a step too early
        else:
            high, parting.weights = steps[place], pairs[place]
            if high - low == 1:
                parting.step = high
                break
        guess = low + 1
    return parting


def _spread(first: int, last: int) -> list[int]:
    """At most HASHED_STEPS steps from first to last, the last among them, evenly apart."""
    count = last - first + 1
    stride = -(-count // HASHED_STEPS)
    return list(range(last, first - 1, -stride))[::-1]


def _doubt(parting: Parting, job: Recorded, replayed: Sequence[training_job_pb2.ReplayedStep]) -> None:
    for step in replayed:
        held = job.weights.get(step.step, step.weights_sha256)
        if held != step.weights_sha256 and (job.name, step.step) not in parting.doubted:
            parting.doubted.append((job.name, step.step))
