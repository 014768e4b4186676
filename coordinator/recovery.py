"""What a failure leads to. Pure: a failure in, a decision out; the loop acts.

A worker that is lost costs its run no more than the stretch under way: the others go on from the snapshot. The run ends where
the failure is the job's, or nobody can mend it here, or the same cause came again and again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from coordinator import limits
from coordinator.exit_status import Cause
from coordinator.group.group import GroupStartFailed, WorkerLoss
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import worker_pb2
from lockstep.v1 import job_spec_pb2
from worker.limits import SKIPPED_IN_A_ROW


@final
class GroupFailed(Exception):
    """A call to a group of `size` workers was not answered as it should be.

    `failures` are the answers that say so, by rank; the `silent` ranks were not lost, but had not answered yet. They have
    `deadline_s` to do so. `asked` is the last step that the group was asked for, if any was, and `taken` the one
    that others answered they took.
    """

    def __init__(
        self,
        step: int,
        doing: str,
        losses: Sequence[WorkerLoss],
        failures: Mapping[int, worker_pb2.Failure],
        silent: Sequence[int] = (),
        size: int = 0,
        deadline_s: float = 0.0,
        asked: int = 0,
        taken: int = 0,
    ) -> None:
        self.step = step
        self.asked, self.taken = asked, taken
        self.doing = doing
        self.losses = tuple(losses)
        self.failures = dict(failures)
        self.silent = tuple(silent)
        self.size = size
        self.deadline_s = deadline_s
        super().__init__(step, doing, self.losses, self.failures, self.silent, size, deadline_s, asked, taken)

    @property
    def reached(self) -> int:
        """The last step that anybody is known to have applied in this group."""
        return self.within(max(self.taken, *(failure.step for failure in self.failures.values()), 0))

    def within(self, step: int) -> int:
        """A step that a worker speaks of, as far as this group took it: who has yet to join speaks of its group before, whose
        steps were counted when that one failed."""
        return max(self.step, min(step, self.asked))

    @property
    def lost(self) -> tuple[int, ...]:
        """The ranks that cannot go on: gone, failed by themselves, or named as missing by a peer and silent."""
        gone = {loss.rank for loss in self.losses}
        for rank, failure in self.failures.items():
            if failure.kind == worker_pb2.Failure.PEER:
                gone |= set(failure.missing_ranks) & set(self.silent)
            else:
                gone.add(rank)
        return tuple(sorted(gone))


@final
class NotFinite(Exception):
    """A number that is not finite turned up, and the policy does not pass over it. `found` says where; `vector`, where only
    the update gave it, which part of the state."""

    def __init__(self, found: worker_pb2.NonFinite, vector: str = "") -> None:
        self.found = found
        self.vector = vector
        super().__init__(found, vector)


@final
class Corrupted(Exception):
    """Two copies of what must be equal differ; the text says which."""


Failed = GroupStartFailed | GroupFailed | NotFinite | Corrupted


@final
@dataclass(frozen=True, slots=True)
class EndRun:
    """End the run like this. `notice` is a word for programs, under which people are told, or empty; `cause` goes with LOST."""

    outcome: agent.RunEnded.Outcome.ValueType
    reason: str
    notice: str = ""
    cause: agent.RunEnded.Cause.ValueType = agent.RunEnded.CAUSE_UNSPECIFIED


@final
@dataclass(frozen=True, slots=True)
class Regroup:
    """Form a new group without the `lost` ranks, give it the snapshot, go on. `notice` is the word under which it is told.

    `hire_later` says that replacements may meet the same cause: they are not asked for at once.
    """

    lost: tuple[int, ...]
    reason: str
    notice: str
    hire_later: bool


@final
@dataclass(frozen=True, slots=True)
class Patience:
    """What failed since a stretch was completed last: the causes that a group may meet again, and the time that was in vain."""

    causes: tuple[str, ...] = ()
    vain_s: float = 0.0

    def after(
        self, failure: GroupFailed, policy: job_spec_pb2.NonFinitePolicy.ValueType, vain_s: float
    ) -> tuple[Regroup | EndRun, Patience]:
        """What to do about a failure, `vain_s` after the group was formed or completed a stretch; and the patience left."""
        end = decide(failure, policy)
        if end.outcome == agent.RunEnded.FAILED or _needs_a_new_run(failure):
            return end, self
        left = replace(self, vain_s=self.vain_s + vain_s)
        if end.cause == agent.RunEnded.OWN:
            left = replace(left, causes=(*self.causes, _cause(failure)))
            if left.causes.count(left.causes[-1]) >= limits.SAME_CAUSE_GROUPS:
                said = f"{end.reason} (so failed {limits.SAME_CAUSE_GROUPS} groups, with no stretch completed between)"
                return EndRun(agent.RunEnded.FAILED, _cut(said), end.notice), left
        if left.vain_s > limits.NO_PROGRESS_S:
            said = f"{end.reason} (groups failed for {left.vain_s / 60:.0f} minutes, with no stretch completed between)"
            return replace(end, reason=_cut(said)), left
        return Regroup(failure.lost, end.reason, end.notice, end.cause == agent.RunEnded.OWN), left


def _needs_a_new_run(failure: GroupFailed) -> bool:
    """Whether every worker says that what it reads is not sound: a new run looks at the checkpoints anew."""
    kinds = {found.kind for found in failure.failures.values()}
    return not failure.losses and kinds == {worker_pb2.Failure.NODE} and len(failure.failures) == failure.size


def _cause(failure: GroupFailed) -> str:
    """The cause without who and when, so that it is known again."""
    for loss in failure.losses:
        if not loss.cause.outside:
            return loss.text if loss.cause in (Cause.CRASHED, Cause.EXITED) else loss.cause.value
    first = _first(failure)
    if first.kind == worker_pb2.Failure.MEMORY:
        return Cause.OUT_OF_MEMORY.value
    lines = first.trace.strip().splitlines()
    return re.sub(r"\d+", "#", lines[-1] if lines else first.text)


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
    """How a run ends that does not mend its group."""
    if isinstance(failure, GroupStartFailed):
        cause = agent.RunEnded.OUTSIDE if failure.outside else agent.RunEnded.OWN
        return EndRun(agent.RunEnded.LOST, str(failure), cause=cause)
    if isinstance(failure, NotFinite):
        return EndRun(agent.RunEnded.FAILED, _not_finite_sentence(failure, policy), "NON_FINITE")
    if isinstance(failure, Corrupted):
        return EndRun(agent.RunEnded.LOST, str(failure), "CORRUPTION_DETECTED", agent.RunEnded.OWN)
    if failure.losses:
        said = "; ".join(str(loss) for loss in failure.losses)
        outside = all(loss.cause.outside for loss in failure.losses)
        cause = agent.RunEnded.OUTSIDE if outside else agent.RunEnded.OWN
        return EndRun(agent.RunEnded.LOST, _cut(f"{said}, {_when(failure)}"), "WORKER_LOST", cause)
    first = _first(failure)
    reason = _cut(f"{first.text} ({_when(failure)})")
    if first.kind == worker_pb2.Failure.USER:
        return EndRun(agent.RunEnded.FAILED, reason)
    # A peer that did not come says nothing about what it did; its link may be cut.
    outside = first.kind == worker_pb2.Failure.PEER
    return EndRun(agent.RunEnded.LOST, reason, "WORKER_FAILED", agent.RunEnded.OUTSIDE if outside else agent.RunEnded.OWN)


def _first(failure: GroupFailed) -> worker_pb2.Failure:
    return min(failure.failures.values(), key=lambda found: _ORDER.index(found.kind))


def _when(failure: GroupFailed) -> str:
    return f"while {failure.doing} after step {failure.step}"


def _not_finite_sentence(failure: NotFinite, policy: job_spec_pb2.NonFinitePolicy.ValueType) -> str:
    left_out = "the step was not applied"
    if policy == job_spec_pb2.SKIP_STEP:
        left_out = f"it would be number {SKIPPED_IN_A_ROW} in a row that is skipped"
    remedy = "lower the learning rate"
    if failure.found.non_finite_rows:
        remedy += ", or look at these rows" if len(failure.found.rows) > 1 else ", or look at this row"
    elif failure.found.shard_rows:
        remedy += ", or look for large numbers in the data"
    return f"{_where(failure.found, failure.vector)}; {left_out}: {remedy}"


def skipped_sentence(found: worker_pb2.NonFinite, vector: str = "") -> str:
    """What a notice says of a step that was skipped."""
    return f"{_where(found, vector)}; the step was skipped"


def earliest(places: Iterable[worker_pb2.NonFinite]) -> worker_pb2.NonFinite:
    """Of what all workers say of one step, what came first in the pass, and then by shard: the same on any number of them."""
    return min(places, key=lambda place: (place.moment or math.inf, not place.where, place.shard))


def _where(found: worker_pb2.NonFinite, vector: str) -> str:
    if vector:
        return f"step {found.step}: the update gave {vector} that are not finite, from gradients that are"
    what = found.where or "sum of gradients"
    of = f" of {found.layer}" if found.layer not in ("", "loss") else ""
    return f"step {found.step}: a number that is not finite came up in the {what}{of}{_rows(found)}"


def _rows(found: worker_pb2.NonFinite) -> str:
    """The shard, and its rows as those of an array are numbered."""
    if not found.shard_rows:
        return ""
    named, listed = len(found.rows), ", ".join(str(row) for row in found.rows)
    if found.non_finite_rows:
        more = f"; {found.non_finite_rows} in all" if found.non_finite_rows > named else ""
        return f", shard {found.shard}, {'row' if named == 1 else 'rows'} {listed} (counted from 0{more})"
    part = f"{named} of {found.shard_rows} rows of the shard" if found.shard_rows > named else "the rows of the shard"
    return f", shard {found.shard}: a sum over its rows ({part}, counted from 0: {listed})"


def _cut(text: str) -> str:
    return text if len(text) <= limits.REASON_CHARACTERS else text[: limits.REASON_CHARACTERS - 3] + "..."
