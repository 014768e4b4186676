"""Wakes those who watch a job when it has changed. Nothing is carried: the store is read again."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

from lockstep.contract.errors import UserError
from services import limits


class Wakeups:
    """One event per watcher, set when its job changes. For one event loop."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self.count = 0
        self.stopping = False

    @contextlib.contextmanager
    def watching(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job changes. Raises UserError when too many watch."""
        if self.count >= limits.WATCHERS:
            raise UserError.of("", "", f"{limits.WATCHERS:,} watch already; try again later", "TOO_MANY_WATCHERS")
        event = asyncio.Event()
        self._watchers[job_id].add(event)
        self.count += 1
        try:
            yield event
        finally:
            self.count -= 1
            self._watchers[job_id].discard(event)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    def stop(self) -> None:
        """The server stops: wakes all who watch, so that they go."""
        self.stopping = True
        self.wake(list(self._watchers))

    def wake(self, job_ids: Iterable[str]) -> None:
        """Wakes the watchers of these jobs."""
        for job_id in set(job_ids):
            for event in self._watchers.get(job_id, ()):
                event.set()
