"""The barrier inside a node: a counter per worker on a cache line of its own, written by its owner alone, read by all.

Spin, then yield: a step takes some 50 us, and waking from a sleep takes longer. Who has waited many times as long, mostly
for another node, naps between two looks: with more workers than cores it would take the time that those need who are awaited.
"""

from __future__ import annotations

import os
import platform
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, final

from worker.collective.peers import PeerError, peer_name

# A worker that waits for another node gets so many deadlines: more than the last of that node's own waits in a step, which
# for LAMB behind clipping by the norm are four, of up to 2 deadlines (`Deadlines.for_other_nodes_s`).
_PATIENCE = 2.5
# The x86-64 keeps the order of plain stores. Elsewhere a lock operation on each side of the counter is the fence.
_FENCE = None if platform.machine() in ("x86_64", "AMD64") else threading.Lock()
_SPINS = 2000  # looks at a counter before the first yield, some 50 us; with fewer cores than workers none
_LOOK_S = 0.002  # waiting longer than this, a worker looks whether its peers live, so often
_NAP_S = 0.0001  # and sleeps so long between two looks at their counters


class Words(Protocol):
    """A worker's words of the barrier, each a one-word view, written by the worker alone and read by its peers."""

    arrived: memoryview  # barriers it has come to
    stopped: memoryview  # not 0: it gives up, for want of the rank that is one less
    excused: memoryview  # not 0: it is late because of another node
    announced: memoryview  # ranges of gradients that its backward passes have completed


@final
class Barrier:
    """Waits of a node's workers for each other: one counter each, written by its owner alone, read by all.

    `pids` of the peers are watched where known.
    """

    def __init__(
        self,
        rank: int,
        nodes: Sequence[str],
        words: Mapping[int, Words],
        pids: Mapping[int, int],
    ) -> None:
        self._rank, self._nodes, self._phase = rank, nodes, 0
        self._words = words
        self._mine, self._excused = words[rank].arrived, words[rank].excused
        self._announced = words[rank].announced
        self._all_announced = [own.announced for own in words.values()]
        self._others = [(other, own.arrived) for other, own in words.items() if other != rank]
        self._spins = _SPINS if len(words) <= len(os.sched_getaffinity(0)) else 0
        self._pidfds: dict[int, int] = {}
        self.waited_s = 0.0
        for other, pid in pids.items():
            if other != rank:
                try:
                    self._pidfds[other] = os.pidfd_open(pid)
                except ProcessLookupError as error:
                    self.close()
                    raise PeerError(f"{peer_name(other, nodes)} is gone: process {pid} ended", [other], 0) from error

    def wait(self, step: int, deadline_s: float, meanwhile: Callable[[], None] | None = None) -> None:
        """Arrives, and returns once all have. Raises PeerError that names who ended, stopped or did not come.

        In a long wait `meanwhile` is called at each look at the peers.
        """
        self._phase = phase = self._phase + 1
        if _FENCE is None:
            self._mine[0] = phase
        else:
            with _FENCE:
                self._mine[0] = phase
        if not self._others:
            return
        began = time.perf_counter()
        for other, word in self._others:
            if word[0] >= phase:
                continue
            for _ in range(self._spins):
                if word[0] >= phase:
                    break
            else:
                self._wait_long(other, word, phase, step, deadline_s, meanwhile)
        if _FENCE is not None:
            with _FENCE:
                pass
        self.waited_s += time.perf_counter() - began

    def _wait_long(
        self,
        other: int,
        word: memoryview,
        phase: int,
        step: int,
        deadline_s: float,
        meanwhile: Callable[[], None] | None,
    ) -> None:
        clock, give_way, nap = time.monotonic, os.sched_yield, time.sleep
        began = clock()
        look = began + _LOOK_S
        while word[0] < phase:
            now = clock()
            if now < look:
                if now - began < _LOOK_S:
                    give_way()
                else:
                    nap(_NAP_S)
                continue
            look = now + _LOOK_S
            self._look(phase, step)
            if meanwhile is not None:
                meanwhile()
            if now - began > deadline_s:
                late = [rank for rank, counter in self._others if counter[0] < phase]
                at_fault = [rank for rank in late if not self._words[rank].excused[0]]
                late = at_fault or (late if now - began > _PATIENCE * deadline_s else [])
                if late:
                    names = ", ".join(peer_name(rank, self._nodes) for rank in late)
                    raise PeerError(f"{names} did not reach step {step} within {deadline_s:.3g} s", late, step)

    def _look(self, phase: int, step: int) -> None:
        """Raises PeerError if a peer that has not come ended, or if any gave up."""
        for rank, own in self._words.items():
            word = own.stopped
            if word[0]:
                missing = word[0] - 1
                because = f" for want of {peer_name(missing, self._nodes)}" if missing not in (rank, self._rank) else ""
                raise PeerError(f"{peer_name(rank, self._nodes)} gave up at step {step}{because}", [missing], step)
        for rank, counter in self._others:
            pidfd = self._pidfds.get(rank)
            if counter[0] < phase and pidfd is not None and _ended(pidfd):
                raise PeerError(f"{peer_name(rank, self._nodes)} ended and did not reach step {step}", [rank], step)

    def announce(self, count: int) -> None:
        """Tells the peers of the node that so many ranges of this worker's gradients may be read. Waits for nobody."""
        if _FENCE is None:
            self._announced[0] = count
        else:
            with _FENCE:
                self._announced[0] = count

    def announced(self) -> int:
        """How many ranges all workers of the node have announced: their gradients may be read."""
        count = min([word[0] for word in self._all_announced])
        if _FENCE is not None:
            with _FENCE:
                pass
        return count

    def stop(self, missing_rank: int) -> None:
        """Tells the peers of the node that this worker gives up because of `missing_rank` (or of itself)."""
        self._words[self._rank].stopped[0] = missing_rank + 1

    def excuse(self) -> None:
        """Tells the peers of the node that this worker is late because it waits for another node, which it will name."""
        self._excused[0] = 1

    def forgive(self) -> None:
        """The wait for other nodes is over."""
        self._excused[0] = 0

    def close(self) -> None:
        """Closes the descriptors of the peers' processes."""
        for pidfd in self._pidfds.values():
            os.close(pidfd)
        self._pidfds.clear()


def _ended(pidfd: int) -> bool:
    """Whether a process has ended, a zombie included."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
