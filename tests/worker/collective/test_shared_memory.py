"""Segments and barriers between real processes: bounds of waits, names of who is missing, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import pytest

from worker.collective.barrier import Barrier
from worker.collective.peers import PeerError
from worker.collective.shared_memory import Segment, SegmentLayout
from worker.memory import usable_memory_bytes

NODES = ("a", "a")
LAYOUT = SegmentLayout.of(64, (1, 64), (1, 64))


def barrier_of(rank: int, own: Segment, other: Segment, pid: int, nodes: Sequence[str] = NODES) -> Barrier:
    """The barrier of one of two workers."""
    return Barrier(rank, nodes, {rank: own, 1 - rank: other}, {1 - rank: pid})


def second_worker(pipe: Connection) -> None:
    """Rank 1: counts with rank 0 as often as it is told, and adds to the common vector in its turn."""
    segment = Segment.create(LAYOUT.size, 7, 1)
    pipe.send((os.getpid(), segment.fd))
    pid, fd = pipe.recv()
    first = Segment.open(pid, fd, LAYOUT.size, 7, 0, NODES)
    barrier = barrier_of(1, segment, first, pid)
    common = first.floats(LAYOUT.parameters, 64)
    for step in range(pipe.recv()):
        barrier.wait(step, 20.0)
        if step % 2:
            common += 1
    pipe.recv()


class Second:
    """The process of rank 1 and what rank 0 has of it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process: Any = context.Process(target=second_worker, args=(there,), daemon=True)
        self.process.start()
        there.close()
        assert self.pipe.poll(30)
        self.pid, self.fd = self.pipe.recv()
        self.segment = Segment.create(LAYOUT.size, 7, 0)
        self.pipe.send((os.getpid(), self.segment.fd))
        self.barrier = barrier_of(0, self.segment, Segment.open(self.pid, self.fd, LAYOUT.size, 7, 1, NODES), self.pid)


@pytest.fixture
def second() -> Any:
    made = Second()
    yield made
    made.process.kill()
    made.process.join(10)
    made.barrier.close()
    made.segment.close()
    made.pipe.close()


def test_workers_alternate_in_shared_memory(second: Second) -> None:
    second.pipe.send(2000)
    common = second.segment.floats(LAYOUT.parameters, 64)
    for step in range(2000):
        second.barrier.wait(step, 20.0)
        if step % 2 == 0:
            assert (common == step).all()
            common += 1
    assert second.barrier.waited_s > 0


def test_the_deadline_names_the_missing_worker(second: Second) -> None:
    second.pipe.send(3)
    for step in range(3):
        second.barrier.wait(step, 20.0)
    began = time.monotonic()
    with pytest.raises(PeerError, match=r"worker 1 \(node a\) did not reach step 812 within 0.2 s") as caught:
        second.barrier.wait(812, 0.2)
    assert caught.value.missing_ranks == (1,) and caught.value.step == 812
    assert 0.2 <= time.monotonic() - began < 2


def test_who_waits_for_another_node_gets_more_time(second: Second) -> None:
    second.barrier._words[1].excused[0] = 1
    began = time.monotonic()
    with pytest.raises(PeerError, match=r"worker 1 \(node a\) did not reach step 5"):
        second.barrier.wait(5, 0.2)
    assert 0.4 <= time.monotonic() - began < 3


def test_a_worker_that_ended_is_named_at_once(second: Second) -> None:
    second.pipe.send(0)
    second.process.kill()
    with pytest.raises(PeerError, match=r"worker 1 \(node a\) ended and did not reach step 5"):
        second.barrier.wait(5, 20.0)


def test_the_stop_word_ends_a_wait_at_once(second: Second) -> None:
    second.barrier._words[1].stopped[0] = 1 + 1  # as rank 1 writes it that gives up by itself
    with pytest.raises(PeerError, match=r"worker 1 \(node a\) gave up at step 5"):
        second.barrier.wait(5, 20.0)


def test_a_segment_of_another_group_is_not_opened(second: Second) -> None:
    with pytest.raises(PeerError, match="has no memory of group 8"):
        Segment.open(second.pid, second.fd, LAYOUT.size, 8, 1, NODES)
    with pytest.raises(PeerError, match="is gone"):
        Segment.open(second.pid, 999, LAYOUT.size, 7, 1, NODES)


def test_memory_that_is_not_there_is_an_error_not_a_signal() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"the segment of worker 0 needs \d+ bytes; \d+ bytes are free"):
        Segment.create(4 * usable_memory_bytes(), 1, 0)
    assert set(os.listdir("/proc/self/fd")) == before


def test_who_gives_up_says_whom_it_misses() -> None:
    nodes = ("a", "a", "a")
    own, other = Segment.create(LAYOUT.size, 1, 0), Segment.create(LAYOUT.size, 1, 1)
    try:
        first, second = (barrier_of(rank, *pair, os.getpid(), nodes) for rank, pair in enumerate(((own, other), (other, own))))
        second.stop(2)
        with pytest.raises(PeerError, match=r"worker 1 \(node a\) gave up at step 3 for want of worker 2") as caught:
            first.wait(3, 5.0)
        assert caught.value.missing_ranks == (2,)
        first.close()
        second.close()
    finally:
        own.close()
        other.close()
