"""What the agent tells a coordinator: framed RunWish messages on stdin. The end of the pipe is the end of the process."""

from __future__ import annotations

import os
import queue
import sys
import threading
from typing import final

from coordinator import framing
from coordinator.exit_codes import EXIT_ORPHANED
from lockstep.internal.v1 import agent_service_pb2 as agent

_READ_BYTES = 1 << 16


@final
class Orders:
    """Reads wishes in a thread of its own. The first one is the order; later ones change what is wanted of it."""

    def __init__(self, descriptor: int) -> None:
        self._first: queue.Queue[agent.RunWish] = queue.Queue(maxsize=1)
        self._changed = threading.Event()
        self._intent = agent.RunWish.INTENT_UNSPECIFIED
        self._workers = self._least = 0
        self._thread = threading.Thread(target=self._read, args=(descriptor,), name="orders", daemon=True)
        self._thread.start()

    def _read(self, descriptor: int) -> None:
        frames = framing.Frames()
        try:
            # Not through sys.stdin: its lock, held while it waits, would stop the interpreter's end.
            while data := os.read(descriptor, _READ_BYTES):
                for frame in frames.feed(data):
                    self._hear(agent.RunWish.FromString(frame))
        except framing.FrameError as error:
            print(f"the agent sent what is no order: {error}", file=sys.stderr, flush=True)
        os._exit(EXIT_ORPHANED)

    def _hear(self, wish: agent.RunWish) -> None:
        first = self._intent == agent.RunWish.INTENT_UNSPECIFIED
        self._intent = wish.intent
        if wish.order.workers:
            self._workers, self._least = wish.order.workers, wish.order.spec.workers.min
        if first:
            self._first.put(wish)
        self._changed.set()

    def first(self, timeout_s: float) -> agent.RunWish | None:
        """The order, or None when none came in time."""
        try:
            return self._first.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def cancelled(self) -> bool:
        """Whether the run is to end at once."""
        return self._intent == agent.RunWish.CANCEL

    def paused(self) -> bool:
        """Whether the run is to end after its next stretch."""
        return self._intent == agent.RunWish.PAUSE

    def workers(self) -> int:
        """How many workers the run is to have; more or fewer than it has now are taken at a stretch's end."""
        return self._workers

    def least(self) -> int:
        """With fewer workers than so many the run waits."""
        return self._least

    def wait(self, timeout_s: float) -> None:
        """Waits until the time is over or something else came to be wanted since the last wait."""
        self._changed.wait(timeout_s)
        self._changed.clear()
