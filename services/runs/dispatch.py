"""The dispatcher: whenever something changed it grants free slots to the queue and says what the agent should be running."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import structlog
from sqlalchemy import Connection

from lockstep.contract.errors import LockstepError
from lockstep.internal.v1.agent_service_pb2 import RunOrder, RunWish, Wishes
from lockstep.v1.cluster_service_pb2 import Node
from lockstep.v1.training_job_pb2 import Run
from services import limits
from services.clock import Clock
from services.jobs import lifecycle
from services.jobs.queue import Growing, Waiting, decide
from services.jobs.scaling import wanted_slots
from services.jobs.transitions import State
from services.store import Store
from services.store import jobs as rows
from services.wakeups import Wakeups

log = structlog.get_logger()

_INTENTS: Final = {State.CANCELLING: RunWish.CANCEL, State.PAUSING: RunWish.PAUSE}


@final
@dataclass(frozen=True, slots=True)
class Round:
    """What one look at the store gave."""

    wishes: Wishes
    details: dict[str, str]
    in_use: int
    granted: list[str]


@final
class Dispatcher:
    """Single decider of grants. `ready` is whether an agent is connected and in step with the store."""

    def __init__(self, store: Store, files: Path, wakeups: Wakeups, clock: Clock) -> None:
        self._store, self._files, self._wakeups, self._clock = store, files, wakeups, clock
        self._changed = asyncio.Event()
        self.nodes: list[Node] = []
        self.problems: list[str] = []
        self.ready = False
        self.in_use = 0
        self.details: dict[str, str] = {}  # what each waiting job waits for
        self.on_wishes: Callable[[Wishes], None] = lambda wishes: None

    @property
    def slots(self) -> int:
        """Worker slots in all, as last reported."""
        return sum(node.slots for node in self.nodes)

    def capacity(self, nodes: Sequence[Node], problems: Sequence[str]) -> None:
        """The agent's report on nodes with slots."""
        self.nodes, self.problems = list(nodes), list(problems)
        self.kick()

    def kick(self) -> None:
        """Something changed: look again."""
        self._changed.set()

    async def run(self) -> None:
        """Looks whenever kicked, and every minute, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.HOUSEKEEPING_SECONDS):
                    await self._changed.wait()
            self._changed.clear()
            try:
                await self.look()
            except LockstepError as error:
                log.error("dispatch_failed", error=str(error))
                await asyncio.sleep(1.0)
                self.kick()

    async def look(self) -> None:
        """One round: grants, wishes, details."""
        slots, ready, now = self.slots, self.ready, self._clock()
        result = await self._store.run(lambda connection: look(connection, self._files, slots, ready, now))
        self.details, self.in_use = result.details, result.in_use
        self._wakeups.wake(result.granted)
        self.on_wishes(result.wishes)


def look(connection: Connection, files: Path, slots: int, ready: bool, now: int) -> Round:
    """Grants what is free and gathers what should run, in one transaction."""
    held, growing = _settle(connection)
    waiting = [
        Waiting(job.id, job.workers_min, job.workers_max, job.state == State.RECOVERING) for job in rows.waiting(connection)
    ]
    decision = decide(waiting, slots, held, ready, growing)
    for job_id, workers in decision.grants.items():
        lifecycle.grant(connection, job_id, workers, now)
    for job_id, workers in decision.grown.items():
        rows.hold(connection, job_id, workers)
    active = rows.active_runs(connection)
    removed = rows.removals_left(connection, limits.REMOVALS)
    gone = [job_id for job_id in removed if not (files / "checkpoints" / job_id).exists()]
    if gone:
        rows.forget_removals(connection, gone)
    wishes = Wishes(removed_job_ids=sorted(set(removed) - set(gone)))
    for run in active:
        job = rows.find(connection, run.job_id)
        if job is not None:
            order = RunOrder.FromString(run.run_order)
            order.workers = wanted_slots(job, run)
            order.spec.workers.min, order.spec.workers.max = job.workers_min, job.workers_max
            wishes.runs.append(RunWish(order=order, intent=_INTENTS.get(State(job.state), RunWish.RUN)))
    return Round(wishes, decision.details, sum(run.workers for run in active), list(decision.grants))


def _settle(connection: Connection) -> tuple[int, list[Growing]]:
    """Takes back the slots of runs that go on with fewer workers; gives the slots that are held, and the runs that can grow.

    A run that was just to grow may take a stretch on workers whose slots are given away already: placing waits for them.
    """
    held, growing = 0, []
    for run in rows.active_runs(connection):
        job, message = rows.find(connection, run.job_id), Run.FromString(run.message)
        has = run.workers
        if job is not None:
            wanted = wanted_slots(job, run)
            if wanted < has and 0 < len(message.members) <= wanted:
                has = wanted
                rows.hold(connection, run.job_id, has)
            if job.state == State.RUNNING and message.resizable and has < job.workers_max:
                growing.append(Growing(run.job_id, has, job.workers_max))
        held += has
    return held, growing
