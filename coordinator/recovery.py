"""What a failure leads to. Pure: a failure in, a decision out; the loop acts.

Today every failure of the group ends the run; a new run goes on from the last checkpoint. Mending a group within its run,
from the snapshot, will be one more decision here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from coordinator import limits
from coordinator.group.group import WorkerLoss
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import worker_pb2
from lockstep.v1 import job_spec_pb2


@final
class GroupFailed(Exception):
    """A call to the group was not answered as it should be."""

    def __init__(
        self,
        step: int,
        doing: str,
        losses: Sequence[WorkerLoss],
        failures: Sequence[worker_pb2.Failure],
    ) -> None:
        self.step = step
        self.doing = doing
        self.losses = tuple(losses)
        self.failures = tuple(failures)
        super().__init__(step, doing, self.losses, self.failures)


@final
class NotFinite(Exception):
    """A number that is not finite turned up; `found` says where, or `vector` names the part of the state that holds it."""

    def __init__(self, found: worker_pb2.NonFinite | None, vector: str = "", first_step: int = 0, last_step: int = 0) -> None:
        self.found = found
        self.vector = vector
        self.first_step = first_step
        self.last_step = last_step
        super().__init__(found, vector, first_step, last_step)


@final
class Corrupted(Exception):
    """Two copies of what must be equal differ; the text says which."""


Failed = GroupFailed | NotFinite | Corrupted


@final
@dataclass(frozen=True, slots=True)
class EndRun:
    """End the run like this. `notice` is a word for programs, under which people are told, or empty; `cause` goes with LOST."""

    outcome: agent.RunEnded.Outcome.ValueType
    reason: str
    notice: str = ""
    cause: agent.RunEnded.Cause.ValueType = agent.RunEnded.CAUSE_UNSPECIFIED


# Whose failure comes first when several workers fail at once: causes before consequences.
_ORDER = [
    worker_pb2.Failure.USER,
    worker_pb2.Failure.MEMORY,
    worker_pb2.Failure.NODE,
    worker_pb2.Failure.INTERNAL,
    worker_pb2.Failure.KIND_UNSPECIFIED,
    worker_pb2.Failure.PEER,
]


def decide(failure: Failed, policy: job_spec_pb2.NonFinitePolicy.ValueType) -> EndRun:
    """What to do about a failure of a run."""
    if isinstance(failure, NotFinite):
        return EndRun(agent.RunEnded.FAILED, _not_finite_sentence(failure, policy), "NON_FINITE")
    if isinstance(failure, Corrupted):
        return EndRun(agent.RunEnded.LOST, str(failure), "CORRUPTION_DETECTED", agent.RunEnded.OWN)
    if failure.losses:
        said = "; ".join(str(loss) for loss in failure.losses)
        outside = all(loss.cause.outside for loss in failure.losses)
        cause = agent.RunEnded.OUTSIDE if outside else agent.RunEnded.OWN
        return EndRun(agent.RunEnded.LOST, _cut(f"{said}, {_when(failure)}"), "WORKER_LOST", cause)
    failures = sorted(failure.failures, key=lambda found: _ORDER.index(found.kind))
    first = failures[0]
    reason = _cut(f"{first.text} ({_when(failure)})")
    if first.kind == worker_pb2.Failure.USER:
        return EndRun(agent.RunEnded.FAILED, reason)
    # A peer that did not come says nothing about what it did; its link may be cut.
    outside = first.kind == worker_pb2.Failure.PEER
    return EndRun(agent.RunEnded.LOST, reason, "WORKER_FAILED", agent.RunEnded.OUTSIDE if outside else agent.RunEnded.OWN)


def _when(failure: GroupFailed) -> str:
    return f"while {failure.doing} after step {failure.step}"


def _not_finite_sentence(failure: NotFinite, policy: job_spec_pb2.NonFinitePolicy.ValueType) -> str:
    remedy = "lower the learning rate, or look at these rows"
    if policy == job_spec_pb2.SKIP_STEP:
        remedy = "skipping the step is not built yet; " + remedy
    found = failure.found
    if found is None:
        steps = f"steps {failure.first_step} to {failure.last_step}"
        return f"{failure.vector} held numbers that are not finite after {steps}: {remedy}"
    rows = ", ".join(str(row) for row in found.rows)
    where = f" in shard {found.shard}, rows {rows}" if rows else ""
    layer = found.layer or "a sum of gradients"
    return f"step {found.step}: {layer} gave a number that is not finite{where}; the step was not applied: {remedy}"


def _cut(text: str) -> str:
    return text if len(text) <= limits.REASON_CHARACTERS else text[: limits.REASON_CHARACTERS - 3] + "..."
