"""What every worker's process runs, whichever leaf started it: the handler of requests, and a watch on the coordinator."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from typing import Protocol, cast

from coordinator import limits
from coordinator.exit_codes import EXIT_SILENCE
from lockstep.internal.v1 import worker_pb2

HEARTBEAT = worker_pb2.WorkerRequest(heartbeat=worker_pb2.HeartbeatRequest()).SerializeToString()


class Handler(Protocol):
    """Answers requests; one at a time, except heartbeats."""

    def handle(self, request: bytes) -> bytes:
        """A WorkerRequest in, a WorkerReply out; never raises."""
        ...


def load_handler(name: str, node_id: str, host: str) -> Handler:
    """Makes the handler that "module:attribute" names."""
    module, _, attribute = name.partition(":")
    return cast(Handler, getattr(importlib.import_module(module), attribute)(node_id=node_id, host=host))


class Host:
    """Hosts a handler; ends its process when nothing was heard from the coordinator for `silence_s`."""

    def __init__(self, handler: str, node_id: str, host: str, silence_s: float = limits.WORKER_SILENCE_S) -> None:
        self._handler = load_handler(handler, node_id, host)
        self._silence_s = silence_s
        self._heard = time.monotonic()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def handle(self, request: bytes) -> bytes:
        """Passes a request on."""
        self._heard = time.monotonic()
        return self._handler.handle(request)

    def beat(self) -> None:
        """The coordinator lives."""
        self._heard = time.monotonic()
        self._handler.handle(HEARTBEAT)

    def _watch(self) -> None:
        while True:
            silent_s = time.monotonic() - self._heard
            if silent_s > self._silence_s:
                print(f"worker {os.getpid()}: nothing heard from the coordinator for {silent_s:.0f} s; ending", file=sys.stderr)
                sys.stderr.flush()
                os._exit(EXIT_SILENCE)
            time.sleep(min(1.0, self._silence_s / 4))
