"""A group of one real worker in the test's process, whose validation losses are a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from coordinator.group.group import Interrupted, Replies, WorkerGroup, WorkerLoss, never, no_alarm
from lockstep.internal.v1 import worker_pb2
from worker.shard_worker import ShardWorker


class InMemoryGroup(WorkerGroup):
    """`losses` gives the validation loss of a step; `on_evaluate` is called with the step when its evaluation is asked for."""

    def __init__(self, losses: Callable[[int], float], on_evaluate: Callable[[int], None] = lambda step: None) -> None:
        self._losses, self._on_evaluate = losses, on_evaluate
        self._worker = ShardWorker(self.here, "127.0.0.1")
        self.evaluated: list[int] = []

    @property
    def size(self) -> int:
        return 1

    @property
    def here(self) -> str:
        return "local"

    def start(self, workers: int, deadline_s: float, interrupted: Callable[[], bool] = never) -> None:
        assert workers == 1

    def call(
        self,
        requests: Mapping[int, bytes],
        deadline_s: float,
        interrupted: Callable[[], bool] = never,
        alarm: Callable[[bytes], float] = no_alarm,
    ) -> Replies:
        request = worker_pb2.WorkerRequest.FromString(requests[0])
        evaluates = request.HasField("evaluate")
        if evaluates:
            self._on_evaluate(request.evaluate.step)
        if interrupted():
            raise Interrupted
        reply = worker_pb2.WorkerReply.FromString(self._worker.handle(requests[0]))
        if evaluates:
            self.evaluated.append(request.evaluate.step)
            for part in reply.evaluate.sums:
                part.loss_sum, part.denominator = self._losses(request.evaluate.step), 1.0
        return Replies({0: reply.SerializeToString()}, ())

    def settle(self, deadline_s: float, interrupted: Callable[[], bool] = never) -> Replies:
        return Replies({}, ())

    def hire(self, workers: int) -> None:
        assert workers == 0

    def arrived(self) -> int:
        return 0

    def failed(self) -> Sequence[WorkerLoss]:
        return ()

    def welcome(self) -> None:
        return None

    def keep(self, ranks: Sequence[int]) -> None:
        assert list(ranks) == [0]

    def beat(self) -> None:
        return None

    def close(self) -> None:
        self._worker.close()
