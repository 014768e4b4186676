"""A shard worker that comes to harm at a named point: LOCKSTEP_FAULT="point:number:what" in its environment.

Points of a step are reached at the step that the worker takes as its number-th: forward, backward (done, nothing posted),
reduce (the gradients are ready), update (a block of it is done). Other points are requests: prepare, snapshot, evaluate, ...
What: the name of a signal that it sends itself, or of an exception that it raises.
"""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Callable
from typing import Any

from lockstep.internal.v1 import worker_pb2
from worker.collective.reduce import Reduction
from worker.nn.model import Model
from worker.nn.update import Update
from worker.shard_worker import ShardWorker


class FaultyWorker:
    """Handles requests as a ShardWorker does, until its fault."""

    def __init__(self, node_id: str, host: str) -> None:
        self._worker = ShardWorker(node_id, host)
        self._point, number, self._what = os.environ.get("LOCKSTEP_FAULT", "never:0:SIGKILL").split(":")
        self._number, self._steps, self._requests = int(number), 0, 0
        self._before(Model, "loss_and_gradient", "forward", counts=True)
        self._before(Reduction, "step", "backward")
        self._before(Reduction, "_apply", "reduce")
        self._before(Update, "apply", "update", after=True)

    def handle(self, request: bytes) -> bytes:
        """The answer."""
        kind = worker_pb2.WorkerRequest.FromString(request).WhichOneof("request")
        if kind == self._point:
            self._requests += 1
            if self._requests == self._number:
                self._suffer()
        return self._worker.handle(request)

    def _suffer(self) -> None:
        self._number = -1
        if hasattr(signal, self._what):
            os.kill(os.getpid(), signal.Signals[self._what])
        else:
            raise getattr(builtins, self._what)("made by a test")

    def _before(self, owner: Any, name: str, point: str, counts: bool = False, after: bool = False) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def faulty(*arguments: Any, **named: Any) -> Any:
            self._steps += counts
            due = point == self._point and self._steps == self._number
            if due and not after:
                self._suffer()
            result = real(*arguments, **named)
            if due and after:
                self._suffer()
            return result

        setattr(owner, name, faulty)
