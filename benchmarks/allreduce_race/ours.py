"""Our side: one worker of a group of two, with its segment, its barrier and its links, and no model.

The update copies the mean gradient into the parameters: after a step each worker can read the mean of all workers' vectors, as
each has the sum after an all-reduce.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any, final

import numpy as np

from benchmarks.turns import serve
from worker.collective.barrier import Barrier
from worker.collective.handshake import Membership
from worker.collective.layout import ExchangeLayout, block_borders
from worker.collective.links import Links, NoLinks
from worker.collective.listener import Listener, link_peers
from worker.collective.norms import Norms
from worker.collective.peers import Deadlines
from worker.collective.plan import NodeMemory
from worker.collective.reduce import Reduction
from worker.collective.shared_memory import F32, Segment, SegmentLayout
from worker.collective.tcp import TcpLinks

WORKERS = 2
HOST = "127.0.0.1"
DEADLINE_S = 60.0
GROUP_NUMBER = 1


@final
class CopyMean:
    """The update of nothing: parameters = mean gradient."""

    cuts: Sequence[int] = ()
    learned = sys.maxsize
    norms: Norms | None = None

    def begin(self, number: int) -> None:
        raise AssertionError(f"there is no pass {number}")

    def apply(
        self,
        first: int,
        parameters: F32,
        gradient: F32,
        state: tuple[F32, ...],
        step: int,
        learning_rate: float,
        number: int = 0,
    ) -> None:
        np.copyto(parameters, gradient)


@final
class Member:
    """Worker `rank` of two that reduce vectors of `floats`; on one node they share memory, on two they are linked by TCP."""

    def __init__(self, rank: int, floats: int, nodes: Sequence[str], key: bytes = bytes(32)) -> None:
        self._rank, self._floats, self._nodes = rank, floats, tuple(nodes)
        self._layout = ExchangeLayout(block_borders([(0, floats)], floats), WORKERS, self._nodes)
        self._places = [
            SegmentLayout.of(
                floats if self._layout.leader(node) == member else 0,
                (1, floats),
                (0, 0),
            )
            for member, node in enumerate(self._nodes)
        ]
        self._segment = Segment.create(self._places[rank].size, GROUP_NUMBER, rank)
        self._member = Membership(key, 1, GROUP_NUMBER, rank)
        self._listener = Listener(HOST, self._member, lambda connection: None)
        self._links: Links = NoLinks()
        self._barrier: Barrier | None = None
        self._step = 0

    def endpoint(self) -> dict[str, int]:
        """Where the others find it."""
        return {"pid": os.getpid(), "fd": self._segment.fd, "port": self._listener.port}

    def connect(self, endpoints: list[dict[str, int]]) -> None:
        """Opens the other's segment, or the link to it."""
        members = self._layout.members[self._nodes[self._rank]]
        segments = {rank: self._segment if rank == self._rank else self._open(rank, endpoints[rank]) for rank in members}
        leader = members[0]
        gradients = {
            rank: segment.floats(self._places[rank].gradients, self._floats).reshape(1, -1)
            for rank, segment in segments.items()
        }
        self._parameters = segments[leader].floats(self._places[leader].parameters, self._floats)
        self._own = gradients[self._rank]
        self._barrier = Barrier(self._rank, self._nodes, segments, {rank: endpoints[rank]["pid"] for rank in members})
        if linked := self._layout.linked(self._rank):
            addresses = {rank: (HOST, endpoints[rank]["port"]) for rank in linked}
            connections = link_peers(self._listener, self._member, linked, addresses, self._nodes)
            self._links = TcpLinks(self._rank, self._nodes, connections)
        reports = {rank: segment.report for rank, segment in segments.items()}
        memory = NodeMemory(self._parameters, gradients, reports, ())
        deadlines = Deadlines(DEADLINE_S, DEADLINE_S)
        self._reduction = Reduction(self._layout, self._rank, memory, self._barrier, self._links, CopyMean(), deadlines)

    def _open(self, rank: int, endpoint: dict[str, int]) -> Segment:
        size = self._places[rank].size
        return Segment.open(endpoint["pid"], endpoint["fd"], size, GROUP_NUMBER, rank, self._nodes)

    def reduce(self) -> None:
        """One reduction; all workers call it."""
        self._step += 1
        self._reduction.step(WORKERS, WORKERS, self._step, 0.0, True, (0.0,), (1.0,))

    def right(self) -> bool:
        """Whether a reduction of known vectors gives their mean here."""
        self._own[...] = np.arange(self._floats, dtype=np.float32) % 1000 + self._rank
        self.reduce()
        return bool(np.array_equal(self._parameters, np.arange(self._floats, dtype=np.float32) % 1000 + np.float32(0.5)))

    def turn(self, count: int) -> float:
        """Seconds of so many reductions, from when both begin."""
        self.reduce()
        began = time.perf_counter()
        for _ in range(count):
            self.reduce()
        return time.perf_counter() - began

    def close(self) -> None:
        """Gives back port, links and memory."""
        self._listener.close()
        self._links.close()
        if self._barrier is not None:
            self._barrier.close()
        self._segment.close()


def main(rank: int) -> None:
    """Serves groups, one after the other."""
    members: dict[str, Member] = {}

    def prepare(name: str, floats: int, nodes: list[str]) -> dict[str, int]:
        members[name] = Member(rank, floats, nodes)
        return members[name].endpoint()

    def connect(name: str, endpoints: list[dict[str, Any]]) -> bool:
        members[name].connect(endpoints)
        return members[name].right()

    serve(
        {
            "prepare": prepare,
            "connect": connect,
            "turn": lambda name, count: members[name].turn(count),
            "close": lambda name: members.pop(name).close(),
        }
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
