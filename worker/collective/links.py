"""The interface of links between nodes: whole messages to a peer and from it, in the order in which both sides speak."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import final


@final
class Message(IntEnum):
    """What crosses a link."""

    GRADIENTS = 1  # a bucket of a node's subtrees' vectors of the owner's chunk; the last one brings the node's report
    PARAMETERS = 2  # the owner's updated chunk
    ABORT = 3  # the sender gives up; the rank is the worker that it misses
    STATE_REQUEST = 4  # the coordinator asks for a range of a vector
    STATE = 5  # the range
    NORMS = 6  # the owner's sums of squares, by block
    STATE_GIVEN = 7  # the coordinator gives a range of a vector; answered by an empty STATE once it is in place


class Links(ABC):
    """Links to the workers of other nodes. Each is used by one thread; a fault of any raises PeerError and ends the group."""

    @property
    @abstractmethod
    def sent_bytes(self) -> int:
        """What went out over all links so far, frames included."""

    @property
    @abstractmethod
    def received_bytes(self) -> int:
        """What came in."""

    @abstractmethod
    def send(self, rank: int, message: Message, step: int, parts: Sequence[memoryview]) -> None:
        """Begins to send `parts`, one after the other; they must not change before `complete` returns."""

    @abstractmethod
    def expect(self, rank: int, message: Message, step: int, parts: Sequence[memoryview]) -> None:
        """Says where the next message of `rank` goes; its length must be that of `parts`."""

    @abstractmethod
    def progress(self, step: int) -> None:
        """Sends and receives what can be at once; waits for nothing."""

    @abstractmethod
    def complete(self, step: int, deadline_s: float, sent: bool, late: Callable[[], None]) -> None:
        """Waits until all that is expected has come, and with `sent` until all has gone out.

        Calls `late` once when half of the time is gone.
        """

    @abstractmethod
    def abort(self, missing_rank: int, step: int) -> None:
        """Tells the peers that the group is over because of `missing_rank`, as far as it can be done at once; sends no more."""

    @abstractmethod
    def close(self) -> None:
        """Closes all links."""


@final
class NoLinks(Links):
    """The links of a group on one node: there are none."""

    @property
    def sent_bytes(self) -> int:
        return 0

    @property
    def received_bytes(self) -> int:
        return 0

    def send(self, rank: int, message: Message, step: int, parts: Sequence[memoryview]) -> None:
        raise AssertionError(f"no link to worker {rank}: the group is on one node")

    def expect(self, rank: int, message: Message, step: int, parts: Sequence[memoryview]) -> None:
        raise AssertionError(f"no link to worker {rank}: the group is on one node")

    def progress(self, step: int) -> None:
        return None

    def complete(self, step: int, deadline_s: float, sent: bool, late: Callable[[], None]) -> None:
        return None

    def abort(self, missing_rank: int, step: int) -> None:
        return None

    def close(self) -> None:
        return None
