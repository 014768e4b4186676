"""What the API server is in a simulation: keeps the job's state by the real table, grants runs, knows what people wish for."""

from __future__ import annotations

from typing import final

from lockstep.internal.v1 import agent_service_pb2 as agent
from services.jobs.transitions import NEXT, TERMINAL, Event, State, next_state
from tests.faults.simulation.clock import Clock
from tests.faults.simulation.diary import Diary
from tests.faults.simulation.faults import Faults
from tests.faults.simulation.job import Job
from tests.faults.simulation.plan import Fault, Kind

_ENDS = {
    agent.RunEnded.SUCCEEDED: Event.SUCCEED,
    agent.RunEnded.FAILED: Event.FAIL,
    agent.RunEnded.LOST: Event.LOSE,
    agent.RunEnded.CANCELLED: Event.STOPPED,
    agent.RunEnded.PAUSED: Event.RESTED,
}
# Between the end of a run and the start of the next.
AGAIN_S = 1.0


@final
class Desk:
    """Also the `Wanted` of each run: a coordinator learns of a wish when it looks."""

    def __init__(self, job: Job, clock: Clock, faults: Faults, diary: Diary) -> None:
        self._job, self._clock, self._faults, self._diary = job, clock, faults, diary
        self.state = State.QUEUED
        self.run_number = 0
        self._count, self._least = job.workers, job.minimum
        self._active = False  # a run is
        self._furthest_step = 0
        self.fingerprint = ""  # the job's, once its first steps began
        self._wishes: list[tuple[float, Fault]] = []
        self._resume: Fault | None = None

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.state in TERMINAL

    def grant(self) -> agent.RunOrder | None:
        """Waits until the job may run, and gives the order of its next run; None when it ended meanwhile."""
        self._clock.to(self._clock.now + AGAIN_S)
        self._look()
        while self.state == State.PAUSED:
            assert self._resume is not None
            self._clock.to(self._clock.now + self._resume.seconds)
            self._scale(self._resume.workers)
            self._look()
            if self.state == State.PAUSED:
                self._move(Event.RESUME)
                self._look()
        if self.over:
            return None
        self._move(Event.GRANT)
        self._active = True
        self.run_number += 1
        order = agent.RunOrder()
        order.CopyFrom(self._job.order)
        order.run_number, order.workers = self.run_number, self._count
        order.furthest_step, order.fingerprint = self._furthest_step, self.fingerprint
        return order

    def hear(self, event: agent.RunEvent) -> None:
        """An event of the run arrives, at once."""
        kind = event.WhichOneof("event")
        if kind == "started":
            self.fingerprint = self.fingerprint or event.started.fingerprint
            self._move(Event.START)
        elif kind == "recovering":
            self._move(Event.RECOVER)
        elif kind == "progress":
            self._furthest_step = max(self._furthest_step, event.progress.progress.step)
        elif kind == "ended":
            self._active = False
            self._furthest_step = max(self._furthest_step, event.ended.last_step)
            self._move(_ENDS[event.ended.outcome])

    def _move(self, event: Event) -> None:
        state = next_state(self.state, event)
        if state != self.state:
            self._diary.say("job", f"{self.state} -> {state} ({event})")
        self.state = state

    # Wishes

    def wish(self, wish: Fault, at: float) -> None:
        """Somebody is going to wish for something."""
        self._wishes.append((at, wish))

    def next_wish(self) -> float:
        """When somebody next does."""
        return min((at for at, _ in self._wishes), default=float("inf"))

    def _look(self) -> None:
        for at, wish in [wish for wish in self._wishes if wish[0] <= self._clock.now]:
            self._wishes.remove((at, wish))
            event = {Kind.PAUSE: Event.PAUSE, Kind.CANCEL: Event.CANCEL}.get(wish.kind)
            if self.over or (event is not None and (self.state, event) not in NEXT):
                continue  # refused
            self._faults.strike(wish, f"to {wish.workers} workers", wish.seconds)
            if wish.kind == Kind.SCALE:
                self._scale(wish.workers)
                continue
            assert event is not None
            if wish.kind == Kind.PAUSE:
                self._resume = wish
            self._move(event)
            if not self._active and self.state in (State.PAUSING, State.CANCELLING):
                self._move(Event.RESTED if self.state == State.PAUSING else Event.STOPPED)

    def _scale(self, workers: int) -> None:
        self._count, self._least = workers, min(self._job.minimum, workers)

    def cancelled(self) -> bool:
        """Whether the run is to end at once."""
        self._look()
        return self.state == State.CANCELLING

    def paused(self) -> bool:
        """Whether the run is to end after its next stretch."""
        self._look()
        return self.state == State.PAUSING

    def workers(self) -> int:
        """How many workers the run is to have."""
        self._look()
        return self._count

    def least(self) -> int:
        """With fewer workers than so many it waits."""
        return self._least

    def wait(self, timeout_s: float) -> None:
        """Waits until the time is over or something else came to be wished for."""
        self._faults.act("wait")
        self._clock.to(min(self._clock.now + timeout_s, max(self._clock.now, self.next_wish())))
