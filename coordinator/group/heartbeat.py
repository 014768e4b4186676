"""A thread that tells a group's workers every few seconds that the coordinator lives, whatever the coordinator is at."""

from __future__ import annotations

import threading
from types import TracebackType

from coordinator import limits
from coordinator.group.group import WorkerGroup


class Heartbeat:
    """Beats a group while the context lasts."""

    def __init__(self, group: WorkerGroup, interval_s: float = limits.HEARTBEAT_S) -> None:
        self._group = group
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def _beat(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._group.beat()

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(limits.KILL_S)
