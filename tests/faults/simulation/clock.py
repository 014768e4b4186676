"""The time of a simulation: it moves when somebody waits, and never otherwise."""

from __future__ import annotations

from typing import final


@final
class Stuck(Exception):
    """The job did not end within its bound although nothing disturbs it any more."""


@final
class Clock:
    """Seconds since the simulation began. `bound` is when the job must have ended: it moves with each disturbance."""

    def __init__(self) -> None:
        self.now = 0.0
        self.bound = float("inf")

    def __call__(self) -> float:
        return self.now

    def to(self, time: float) -> None:
        """Waits until then. Raises Stuck."""
        self.now = max(self.now, time)
        if self.now > self.bound:
            raise Stuck(f"at {self.now:.0f} s the job goes on; it had to end before {self.bound:.0f} s")
