"""What happened in a simulation, line by line: every decision, fault and event, with its time."""

from __future__ import annotations

from typing import final

from tests.faults.simulation.clock import Clock


@final
class Diary:
    """Lines are kept only where somebody is going to read them."""

    def __init__(self, clock: Clock, kept: bool) -> None:
        self._clock, self.kept = clock, kept
        self.lines: list[str] = []

    def say(self, who: str, text: str) -> None:
        """Adds a line."""
        if self.kept:
            self.lines.append(f"{self._clock.now:10.3f}  {who:<11}  {text}")
