"""A handler that stands in for a shard worker in the group's contract tests: it does what the bytes say."""

from __future__ import annotations

import os
import signal
import time

from lockstep.internal.v1 import worker_pb2

_HEARTBEAT = worker_pb2.WorkerRequest(heartbeat=worker_pb2.HeartbeatRequest()).SerializeToString()


class FakeWorker:
    """b"echo ..." echoes; b"pid", b"node" tell; b"sleep S" sleeps; b"kill N" sends itself a signal; b"beats" counts beats."""

    def __init__(self, node_id: str, host: str) -> None:
        self.node_id = node_id
        self.host = host
        self.beats = 0

    def handle(self, request: bytes) -> bytes:
        """The answer."""
        if request == _HEARTBEAT:
            self.beats += 1
            return b""
        word, _, rest = request.partition(b" ")
        match word:
            case b"echo":
                return rest
            case b"pid":
                return str(os.getpid()).encode()
            case b"node":
                return self.node_id.encode()
            case b"beats":
                return str(self.beats).encode()
            case b"sleep":
                time.sleep(float(rest))
                return b"slept"
            case b"kill":
                os.kill(os.getpid(), signal.Signals(int(rest)))
                time.sleep(60)
        return b"?"


class BrokenWorker:
    """Cannot be made."""

    def __init__(self, node_id: str, host: str) -> None:
        raise RuntimeError("this worker cannot be made")
