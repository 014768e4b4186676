"""The faults of a simulation as it meets them: counts the coordinator's acts and calls, and says what strikes now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import final

from tests.faults.simulation.clock import Clock, Stuck
from tests.faults.simulation.diary import Diary
from tests.faults.simulation.plan import AT_ACTS, DISK, HIRES, PEOPLE, WORKER, Fault, Kind

# After the last disturbance a job ends within this time, and within so many acts of its coordinator. The longest wait for
# somebody silent is that for an evaluation, 600 s, and the longest for a replacement 900 s.
CALM_S = 4000.0
CALM_ACTS = 20_000


@final
class CoordinatorDied(BaseException):
    """The process is gone. No code of it may catch this, and nothing that it does while this rises has an effect."""


@final
class Faults:
    """What has struck, and what is still to come."""

    def __init__(self, planned: Sequence[Fault], clock: Clock, diary: Diary) -> None:
        self._clock, self._diary = clock, diary
        self._waiting = list(planned)
        self._calm_since = 0
        self.acts = self.calls = 0
        self.dead = False  # the coordinator
        self.struck: Counter[Kind] = Counter()
        self.struck_at: tuple[int, int] | None = None  # the call and the act that the first one met
        self.call_acts: list[int] = []  # the act that each call was
        clock.bound = clock.now + CALM_S

    def act(self, what: str) -> None:
        """The coordinator is about to do something that others see. Raises CoordinatorDied."""
        if self.dead:
            raise CoordinatorDied
        self.acts += 1
        if self.acts - self._calm_since > CALM_ACTS:
            raise Stuck(f"the coordinator did {CALM_ACTS} things since the last disturbance, and the job goes on")
        for fault in self._due((Kind.STOP,)):
            self.strike(fault, f"before {what}")
            self.dead = True
            raise CoordinatorDied

    def call(self) -> list[Fault]:
        """A call to the group is about to begin: the workers' faults that are due, which strike only if they can."""
        self.calls += 1
        self.call_acts.append(self.acts)
        return self._due(WORKER)

    def later(self, fault: Fault) -> None:
        """A fault that cannot strike in this call waits for the next."""
        self._waiting.append(replace(fault, at=self.calls + 1))

    def people(self) -> list[Fault]:
        """What people wish for during this call."""
        return self._due(PEOPLE)

    def hires(self) -> list[Fault]:
        """What becomes of the next replacement, and of later ones."""
        return self._due(HIRES)

    def place(self) -> list[Fault]:
        """What keeps workers from being placed."""
        return self._due((Kind.NO_PLACE,))

    def disk(self) -> list[Fault]:
        """What happens to the disk now."""
        return self._due((Kind.FULL, Kind.NO_ROOM, Kind.BROKEN))

    def damages(self) -> list[Fault]:
        """What becomes of files before the next run."""
        return self._due((Kind.DAMAGE,))

    def _due(self, kinds: Sequence[Kind]) -> list[Fault]:
        if not self._waiting:
            return []
        due = [
            fault
            for fault in self._waiting
            if fault.kind in kinds
            # Workers and people meet a certain call; the others the first chance from then on.
            and (
                fault.at == self.calls
                if fault.kind in (*WORKER, *PEOPLE)
                else fault.at <= (self.acts if fault.kind in AT_ACTS else self.calls)
            )
        ]
        for fault in due:
            self._waiting.remove(fault)
        return due

    def strike(self, fault: Fault, how: str, lasts_s: float = 0.0) -> None:
        """A fault has an effect, which lasts so long."""
        self.struck[fault.kind] += 1
        self.struck_at = self.struck_at or (self.calls, self.acts)
        self.disturbed(lasts_s)
        self._diary.say("fault", f"{fault}: {how}")

    def disturbed(self, lasts_s: float = 0.0) -> None:
        """Something happened that the job may take time to get over."""
        self._calm_since = self.acts
        self._clock.bound = max(self._clock.bound, self._clock.now + lasts_s + CALM_S)


assert set(DISK) | set(HIRES) | set(PEOPLE) | set(WORKER) | {Kind.STOP, Kind.NO_PLACE} == set(Kind)
