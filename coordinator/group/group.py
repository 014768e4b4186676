"""The interface of a worker group: start a gang, call all of it with deadlines, keep some, close."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from coordinator import limits
from coordinator.exit_status import Cause

# What a worker's process hosts: "module:attribute", called with node_id and host, with handle(bytes) -> bytes.
SHARD_WORKER = "worker.shard_worker:ShardWorker"
PORTABLE_WORKER = "worker.portable:portable_worker"


@dataclass(frozen=True, slots=True)
class WorkerLoss:
    """A worker that is not there any more, or did not answer in time."""

    rank: int
    node: str
    pid: int
    cause: Cause
    text: str

    def __str__(self) -> str:
        return f"worker {self.rank} (node {self.node[:12]}, pid {self.pid}) {self.text}"


@dataclass(frozen=True, slots=True)
class Replies:
    """The answers to one call, by rank, and the workers that were lost on the way; a rank in neither still owes its answer."""

    by_rank: Mapping[int, bytes]
    losses: Sequence[WorkerLoss]


class GroupStartFailed(Exception):
    """The gang could not be had; the text says why and what to do.

    `outside` says that the workers did nothing to it: there was no place for them, or the cluster did not answer.
    """

    def __init__(self, text: str, outside: bool) -> None:
        self.outside = outside
        super().__init__(text)


class Interrupted(Exception):
    """The wait was given up because somebody asked for it."""


def never() -> bool:
    """No interruption."""
    return False


def no_alarm(reply: bytes) -> float:
    """No answer changes how long the others are awaited."""
    return 0.0


@final
class AnswersDue:
    """Until when the answers to a call are awaited: its deadline; a short grace after a loss; after alarms as long as the most
    patient of them asks. Times are of the caller's clock, in seconds."""

    def __init__(self, deadline: float) -> None:
        self._deadline, self._alarmed_until = deadline, 0.0
        self.alarmed = False

    def lost(self, now: float) -> None:
        """A worker was lost."""
        self._deadline = min(self._deadline, now + limits.LOSS_GRACE_S)

    def heard(self, now: float, grace_s: float) -> None:
        """An answer came that is an alarm, unless `grace_s` is 0."""
        if grace_s > 0:
            self.alarmed = True
            self._alarmed_until = max(self._alarmed_until, now + grace_s)

    @property
    def end(self) -> float:
        """When the wait is over."""
        return min(self._deadline, self._alarmed_until) if self.alarmed else self._deadline


class WorkerGroup(ABC):
    """Workers that step together, as processes: ranks 0 to size - 1. Bytes in, bytes out; no meaning is looked at here.

    A worker that died is known at once; one that hangs, after the deadline of the call. No worker is ever started again; others
    may come in the place of those that are lost, or on top.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """How many workers there are."""

    @property
    @abstractmethod
    def here(self) -> str:
        """The id of the node that the coordinator is on; workers of that node share memory with it."""

    @abstractmethod
    def start(self, workers: int, deadline_s: float, interrupted: Callable[[], bool] = never) -> None:
        """Starts all workers or none. Raises GroupStartFailed, Interrupted."""

    @abstractmethod
    def call(
        self,
        requests: Mapping[int, bytes],
        deadline_s: float,
        interrupted: Callable[[], bool] = never,
        alarm: Callable[[bytes], float] = no_alarm,
    ) -> Replies:
        """Sends each rank its request and collects the answers until all are there, a worker is lost, or time is up.

        `alarm` says of an answer for how many seconds the others are awaited after it; 0: as long as before. After an alarm,
        or a loss, whose grace is short, `settle` comes before the next call. Raises Interrupted.
        """

    @abstractmethod
    def settle(self, deadline_s: float, interrupted: Callable[[], bool] = never) -> Replies:
        """Collects the answers that are still owed; whoever is lost meanwhile or does not answer in time is among the losses.

        Raises Interrupted.
        """

    @abstractmethod
    def keep(self, ranks: Sequence[int]) -> None:
        """Goes on with these workers, renumbered in this order; the others are ended, and their places given back."""

    @abstractmethod
    def hire(self, workers: int) -> None:
        """Sees to it that so many more workers are on their way or have arrived; those too many are sent home. Never waits."""

    @abstractmethod
    def arrived(self) -> int:
        """How many of the hired ones could join now. Never waits."""

    @abstractmethod
    def failed(self) -> Sequence[WorkerLoss]:
        """Those hired that died before they arrived, each once; their ranks are those that they would have had."""

    @abstractmethod
    def welcome(self) -> None:
        """Takes those that have arrived into the group, as its last ranks."""

    @abstractmethod
    def beat(self) -> None:
        """Tells every worker that the coordinator lives; never waits."""

    @abstractmethod
    def close(self) -> None:
        """Ends all workers. May be called twice."""
