"""Links in memory: the network of a test, where what is sent lies in queues."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence

from worker.collective.links import Links, Message
from worker.collective.peers import PeerError

Frame = tuple[Message, int, bytes]


class MemoryNetwork:
    """The queues between all pairs of workers, and a count of what crossed."""

    def __init__(self) -> None:
        self._queues: defaultdict[tuple[int, int], queue.Queue[Frame]] = defaultdict(queue.Queue)
        self._making = threading.Lock()
        self.bytes_sent: defaultdict[int, int] = defaultdict(int)
        self.messages_sent: defaultdict[int, int] = defaultdict(int)
        self.events: list[tuple[int, str]] = []  # (worker, what it did), in order

    def queue(self, sender: int, receiver: int) -> queue.Queue[Frame]:
        """The queue from one worker to another; under a lock, or both ends, each in its thread, might make one of their own."""
        with self._making:
            return self._queues[sender, receiver]

    def links(self, rank: int) -> MemoryLinks:
        """The links of one worker."""
        return MemoryLinks(self, rank)


class MemoryLinks(Links):
    """One worker's ends of the queues."""

    def __init__(self, network: MemoryNetwork, rank: int) -> None:
        self._network, self._rank = network, rank
        self._expected: list[tuple[int, Message, int, Sequence[memoryview]]] = []

    @property
    def sent_bytes(self) -> int:
        return self._network.bytes_sent[self._rank]

    @property
    def received_bytes(self) -> int:
        return 0  # nobody asks in memory

    def send(self, rank: int, message: Message, step: int, parts: Sequence[memoryview]) -> None:
        data = b"".join(parts)
        self._network.events.append((self._rank, f"{message.name} to {rank}"))
        self._network.queue(self._rank, rank).put((message, step, data))
        self._network.bytes_sent[self._rank] += len(data)
        self._network.messages_sent[self._rank] += 1

    def progress(self, step: int) -> None:
        return None

    def expect(self, rank: int, message: Message, step: int, parts: Sequence[memoryview]) -> None:
        self._expected.append((rank, message, step, parts))

    def complete(self, step: int, deadline_s: float, sent: bool, late: Callable[[], None]) -> None:
        for rank, message, at, parts in self._expected:
            try:
                got, got_step, data = self._network.queue(rank, self._rank).get(timeout=deadline_s)
            except queue.Empty:
                raise PeerError(f"worker {rank} did not reach step {step}", [rank], step) from None
            assert (got, got_step, len(data)) == (message, at, sum(map(len, parts)))
            for part in parts:
                part[:], data = data[: len(part)], data[len(part) :]
        self._expected.clear()

    def abort(self, missing_rank: int, step: int) -> None:
        return None

    def close(self) -> None:
        return None
