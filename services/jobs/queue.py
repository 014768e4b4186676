"""The queue: first in, first out, with slots granted out of what the agent reported. No clock, no store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True)
class Waiting:
    """A job without a run, in the order of the queue; `recovering` jobs come before all others."""

    job_id: str
    workers_min: int
    workers_max: int
    recovering: bool = False


@final
@dataclass(frozen=True, slots=True)
class Growing:
    """A job whose run can take on more workers."""

    job_id: str
    workers: int
    workers_max: int


@final
@dataclass(frozen=True, slots=True)
class Decision:
    """Who gets how many slots, how many runs that grow have then, and what the others are told."""

    grants: dict[str, int]
    grown: dict[str, int]
    details: dict[str, str]


def decide(waiting: Sequence[Waiting], slots: int, in_use: int, ready: bool, growing: Sequence[Growing] = ()) -> Decision:
    """Shares out the free slots. `ready` is whether an agent can start runs.

    The first job that fits the cluster but not what is free holds back those behind it, so that it is not starved; a job
    that the whole cluster could not hold is told what it lacks and holds back nobody. Only what nobody waits for makes runs
    grow, those with the fewest workers first.
    """
    order = sorted(waiting, key=lambda job: not job.recovering)
    free, blocked = slots - in_use, False
    grants: dict[str, int] = {}
    behind: list[Waiting] = []
    details: dict[str, str] = {}
    for job in order:
        if ready and not blocked and job.workers_min <= free:
            grants[job.job_id] = min(job.workers_max, free)
            free -= grants[job.job_id]
            continue
        behind.append(job)
        if job.workers_min <= slots:
            blocked = True
    for place, job in enumerate(behind, start=1):
        details[job.job_id] = f"{_place(job, place, len(behind))}; {_lack(job, slots, max(0, free), ready)}"
    return Decision(grants, _grow(growing, free) if ready and not blocked else {}, details)


def _grow(growing: Sequence[Growing], free: int) -> dict[str, int]:
    """Gives out the free slots one by one."""
    has = {run.job_id: run.workers for run in growing}
    for _ in range(free):
        room = [run for run in growing if has[run.job_id] < run.workers_max]
        if not room:
            break
        has[min(room, key=lambda run: has[run.job_id]).job_id] += 1
    return {run.job_id: has[run.job_id] for run in growing if has[run.job_id] > run.workers}


def _place(job: Waiting, place: int, count: int) -> str:
    return "waits for a new run" if job.recovering else f"place {place} of {count} in the queue"


def _lack(job: Waiting, slots: int, free: int, ready: bool) -> str:
    if not ready:
        return "no agent is connected, so that nothing can start; runs begin when it is back"
    if slots == 0:
        return f"needs {_slots(job.workers_min)}, no node has any yet; it begins when nodes have joined"
    if job.workers_min > slots:
        return f"needs {_slots(job.workers_min)}, the cluster has {slots}; add nodes, or scale it to fewer workers.min"
    if job.workers_min > free:
        return f"needs {_slots(job.workers_min)}, {free} {'is' if free == 1 else 'are'} free"
    return f"needs {_slots(job.workers_min)}; an earlier job comes first"


def _slots(count: int) -> str:
    return f"{count} worker slot{'' if count == 1 else 's'}"
