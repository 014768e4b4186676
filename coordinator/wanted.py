"""What is wanted of a run, as far as it may change while it runs."""

from __future__ import annotations

from typing import Protocol


class Wanted(Protocol):
    """What is wanted of the run right now."""

    def cancelled(self) -> bool:
        """Whether it is to end at once."""
        ...

    def paused(self) -> bool:
        """Whether it is to end after its next stretch."""
        ...

    def workers(self) -> int:
        """How many workers it is to have."""
        ...

    def least(self) -> int:
        """With fewer workers than so many it waits."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Waits until the time is over or something else came to be wanted."""
        ...
