"""Gradients that cross while the backward pass goes on: the same bits and bytes, before its end, and faults in mid-bucket."""

from __future__ import annotations

import random
import socket
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from tests.worker.collective.memory_group import (
    DEADLINE_S,
    Descent,
    Group,
    Keep,
    PlainWords,
    cases,
    sums_any_number_of_shards,
    take_turns,
    takes_plain_steps,
)
from tests.worker.nn.networks import CROSS_ENTROPY, dense_net, draw_stack
from worker.collective import buckets as buckets_file
from worker.collective.barrier import Barrier
from worker.collective.buckets import Range, buckets
from worker.collective.layout import ExchangeLayout, block_borders
from worker.collective.links import Message
from worker.collective.peers import Deadlines, PeerError
from worker.collective.plan import NodeMemory
from worker.collective.reduce import Reduction
from worker.collective.shared_memory import REPORT_FLOATS
from worker.collective.tcp import HEADER, TcpLinks, header
from worker.nn.model import Model

REPORT_BYTES = 8 * REPORT_FLOATS


@pytest.fixture(autouse=True)
def threads_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    take_turns(monkeypatch)


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of at least 64 floats."""
    monkeypatch.setattr(buckets_file, "_BUCKET_FLOATS", 64)


def drawn_ranges(draw: random.Random, size: int) -> list[Range]:
    """The vector in up to ten parts, in any order."""
    cuts = sorted({0, size, *(16 * draw.randrange(size // 16 + 1) for _ in range(9))})
    ranges = list(pairwise(cuts))
    draw.shuffle(ranges)
    return ranges


# Buckets


def test_buckets_are_neighbours_joined_and_the_last_takes_what_is_left(small_buckets: None) -> None:
    made = buckets([(96, 160), (80, 96), (16, 32), (32, 80), (0, 16)])
    assert [(bucket.after, bucket.ranges) for bucket in made] == [
        (1, ((96, 160),)),
        (4, ((16, 96),)),
        (5, ((0, 16),)),
    ]
    assert made[1].within(0, 20) == [(16, 20)] and made[1].within(96, 160) == []


def test_small_networks_and_single_nodes_have_nobody_to_tell() -> None:
    assert not Group("aab", 4, 4096, finished_ranges=[(2048, 4096), (0, 2048)]).reductions[0].overlaps
    large = 4 * buckets_file._BUCKET_FLOATS
    halves = [(large // 2, large), (0, large // 2)]
    assert not Group("aa", 4, large, finished_ranges=halves).reductions[0].overlaps
    assert Group("ab", 4, large, finished_ranges=halves).reductions[0].overlaps


# The same bits and bytes


@pytest.mark.parametrize(("seed", "workers", "shards", "node_count"), cases())
def test_parameters_and_state_are_those_of_the_plain_tree_sum(
    small_buckets: None, seed: int, workers: int, shards: int, node_count: int
) -> None:
    draw = np.random.default_rng(seed)
    nodes = [f"node-{draw.integers(node_count)}" for _ in range(workers)]
    if seed % 2:
        nodes.sort()
    size = 16 * int(draw.integers(20, 900))
    group = Group(nodes, shards, size, finished_ranges=drawn_ranges(random.Random(seed), size))
    without = Group(nodes, shards, size)
    assert group.reductions[0].overlaps == (len(set(nodes)) > 1)
    takes_plain_steps([group, without], draw)
    assert group.network.bytes_sent == without.network.bytes_sent


@pytest.mark.parametrize("nodes", ["ab", "aab", "abb", "aabb", "aba", "abab", "aaabc", "abc", "abcdefgh"])
def test_workers_without_rows_do_not_hold_up_those_with(small_buckets: None, nodes: str) -> None:
    shards, size = 8, 5 * 4096
    ranges = [(first, first + 4096) for first in range(0, size, 4096)][::-1]
    sums_any_number_of_shards(Group(nodes, shards, size, Keep, finished_ranges=ranges))


@pytest.mark.parametrize("victim", [0, 2])
def test_one_flag_keeps_every_worker_from_the_update_though_the_gradients_have_left(small_buckets: None, victim: int) -> None:
    group = Group("abb", 4, 256, finished_ranges=[(128, 256), (0, 128)])
    gradients = [np.ones(256, np.float32)] * 4
    results = group.step(1, 4, gradients, [1.0] * 4, [rank != victim for rank in range(3)])
    assert not any(result.finite for result in results)
    assert not any(node.any() for node in group.parameters.values())
    assert all(result.finite for result in group.step(2, 4, gradients, [1.0] * 4, [True] * 3))
    assert all(node.all() for node in group.parameters.values())


# Before the end


def test_gradients_leave_before_the_backward_pass_ends(small_buckets: None) -> None:
    size, sends = 3 * 4096, "GRADIENTS to 1"
    group = Group("ab", 2, size, finished_ranges=[(10240, size), (4096, 10240), (0, 4096)])
    assert group.layout.chunks == ((0, 8192), (8192, size))
    group.step(1, 2, [np.ones(size, np.float32)] * 2, [0.0] * 2, [True] * 2)
    own = [event for rank, event in group.network.events if rank == 0 and "PARAMETERS" not in event]
    assert own == ["finished 1", sends, "finished 2", sends, "finished 3", sends]  # the last is the report


def test_a_bucket_leaves_once_all_workers_of_the_node_have_completed_it(small_buckets: None) -> None:
    """Worker 0 carries the chunk of worker 2; one thread plays both workers of the node."""
    size = 3 * 4096
    group = Group("aab", 4, size, finished_ranges=[(10240, size), (5000, 10240), (0, 5000)])
    assert group.layout.chunks[2] == (8192, size) and group.layout.carried(0) == [2]
    group.gradients[0].fill(1)
    group.gradients[1].fill(2)
    first, second = (group.reductions[rank].begin(4, 1) for rank in range(2))
    first(0)
    first(1)
    assert group.network.events == []
    second(1)
    assert group.network.events == []
    first(1)
    assert group.network.events == [(0, "GRADIENTS to 2")]
    second(2)
    first(2)
    assert group.network.events == [(0, "GRADIENTS to 2")] * 2
    *_, data = group.network.queue(0, 2).get()
    assert np.frombuffer(data, np.float32).tolist() == [3.0] * 2048


def test_who_waits_for_its_node_goes_on_sending(small_buckets: None) -> None:
    size = 3 * 4096
    group = Group("aab", 4, size, finished_ranges=[(10240, size), (5000, 10240), (0, 5000)])
    for rank in range(2):
        group.gradients[rank].fill(1)
    first, second = (group.reductions[rank].begin(4, 1) for rank in range(2))
    first(3)
    assert group.network.events == []
    group.reductions[0]._deadlines.seconds = 0.5

    def wait() -> None:
        with pytest.raises(PeerError, match="worker 1"):
            group.reductions[0].step(4, 40, 1, 0.5, True, [0.0], [1.0])

    waiting = threading.Thread(target=wait)
    waiting.start()
    second(1)
    waiting.join(DEADLINE_S)
    assert group.network.events == [(0, "GRADIENTS to 2")]


# Over sockets


class Worker:
    """One of two workers on two nodes, with a model, linked over a socket."""

    def __init__(
        self, rank: int, link: socket.socket, widths: Sequence[int] = (300, 300, 4), update: type[Descent | Keep] = Descent
    ) -> None:
        nodes, inputs = ["a", "b"], 48
        self.model = Model(dense_net(widths, inputs=(inputs,)), CROSS_ENTROPY)
        entries, size = self.model.layout.entries, self.model.layout.size
        borders = block_borders([(entry.offset, entry.offset + entry.size) for entry in entries], size)
        self.layout = ExchangeLayout(borders, 2, nodes)
        self.parameters, self.report, words = self.model.parameters, np.zeros(REPORT_FLOATS), PlainWords()
        first, end = self.layout.chunks[rank]
        state = (np.zeros(end - first, np.float32),)
        memory = NodeMemory(self.parameters, {rank: self.model.gradients}, {rank: self.report}, state)
        self.links = TcpLinks(rank, nodes, {1 - rank: link})
        barrier, deadlines = Barrier(rank, nodes, {rank: words}, {}), Deadlines(DEADLINE_S, DEADLINE_S)
        ranges = self.model.finished_ranges
        self.reduction = Reduction(self.layout, rank, memory, barrier, self.links, update(), deadlines, ranges)
        self.stack = draw_stack(np.random.default_rng(rank), 1, 4, (inputs,), widths[-1], CROSS_ENTROPY)

    def step(self, number: int, look: Callable[[int], None] | None = None) -> None:
        """One step; `look` is called after each announcement."""
        finished = self.reduction.begin(2, number)

        def hear(count: int) -> None:
            finished(count)
            if look is not None:
                look(count)

        result = self.model.loss_and_gradient([self.stack], finished=hear)
        self.reduction.step(2, 8, number, 0.1, result.finite, result.loss_sums, result.denominators)


def test_a_peer_has_the_last_layers_gradient_before_the_first_layers_is_there(
    small_buckets: None, pair: tuple[socket.socket, socket.socket]
) -> None:
    worker, seen = Worker(0, pair[0]), list[int]()
    worker.model.gradients.fill(np.nan)
    first, end = worker.layout.chunks[1]
    made = buckets(worker.model.finished_ranges)
    (bucket, (lo, hi)) = next((b, part) for b in made for part in b.within(first, end))

    def look(count: int) -> None:
        if count >= bucket.after and not seen:
            seen.append(count)
            frame = pair[1].recv(HEADER.size + 4 * (hi - lo), socket.MSG_WAITALL)
            assert frame[: HEADER.size] == header(Message.GRADIENTS, 0, 1, 4 * (hi - lo))
            assert frame[HEADER.size :] == worker.model.gradients[0, lo:hi].tobytes()
            assert np.isnan(worker.model.named_gradients()["0.dense.weight"]).all()
            raise StopIteration  # nobody would answer

    with pytest.raises(StopIteration):
        worker.step(1, look)
    assert seen and seen[0] < len(worker.model.finished_ranges)


@pytest.mark.parametrize("widths", [(300, 300, 4), (900, 900, 4)])
def test_two_workers_over_sockets_end_with_the_bits_of_the_plain_sum(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[socket.socket, socket.socket], widths: tuple[int, ...]
) -> None:
    if widths[0] < 900:
        monkeypatch.setattr(buckets_file, "_BUCKET_FLOATS", 64)
    else:
        for end in pair:  # a fraction of a bucket
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    workers = [Worker(rank, pair[rank], widths) for rank in range(2)]
    alone = Model(dense_net(widths, inputs=(48,)), CROSS_ENTROPY)
    assert all(worker.reduction.overlaps for worker in workers)

    for number in range(1, 4):
        total = np.zeros_like(alone.parameters)
        for worker in workers:
            alone.loss_and_gradient([worker.stack])
            total = alone.gradients[0].copy() if worker is workers[0] else total + alone.gradients[0]
        np.subtract(alone.parameters, np.float32(0.1) * (total / np.float32(8)), out=alone.parameters)
        other = threading.Thread(target=workers[1].step, args=(number,))
        other.start()
        workers[0].step(number)
        other.join(DEADLINE_S)
        for worker in workers:
            assert worker.parameters.tobytes() == alone.parameters.tobytes()


def test_a_step_allocates_no_array_after_the_first(pair: tuple[socket.socket, socket.socket]) -> None:
    workers = [Worker(rank, pair[rank], update=Keep) for rank in range(2)]

    def steps(first: int, last: int) -> None:
        def take(worker: Worker) -> None:
            for number in range(first, last):
                worker.step(number)

        other = threading.Thread(target=take, args=(workers[1],))
        other.start()
        take(workers[0])
        other.join(DEADLINE_S)

    steps(1, 4)
    tracemalloc.start()
    try:
        steps(4, 6)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        steps(6, 10)
        # Of two workers and a thread; the smallest part of a bucket would take 7 KB, an array of the vector 400 KB.
        assert tracemalloc.get_traced_memory()[1] - before < 16384
    finally:
        tracemalloc.stop()


# Faults


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (lambda length: header(Message.GRADIENTS, 1, 1, length)[:9], "closed its link at step 1"),
        (lambda length: header(Message.GRADIENTS, 1, 1, length) + b"\0" * (length // 2), "closed its link at step 1"),
        (lambda length: header(Message.GRADIENTS, 1, 1, length + 4), "bytes as worker 1; expected was GRADIENTS"),
        (lambda length: header(Message.GRADIENTS, 1, 1, 1 << 62), "with 4611686018427387904 bytes"),
        (lambda length: header(Message.GRADIENTS, 1, 2, length), "of step 2"),
        (lambda length: header(Message.PARAMETERS, 1, 1, length), "sent message 2"),
        (lambda length: b"x" * HEADER.size, "sent something that is no frame"),
        (lambda length: header(Message.ABORT, 1, 1, 0), "gave up at step 1"),
        (lambda length: b"", "closed its link at step 1"),
    ],
)
def test_a_fault_of_a_peer_ends_the_backward_pass_and_names_it(
    small_buckets: None, pair: tuple[socket.socket, socket.socket], frame: Callable[[int], bytes], text: str
) -> None:
    worker, heard = Worker(0, pair[0]), list[int]()
    (first, end), made = worker.layout.chunks[0], buckets(worker.model.finished_ranges)
    length = 4 * sum(hi - lo for lo, hi in made[0].within(first, end))  # of the first message

    def look(count: int) -> None:
        heard.append(count)
        if len(heard) == 1:
            pair[1].sendall(frame(length))
            pair[1].shutdown(socket.SHUT_WR)

    with pytest.raises(PeerError, match=text) as caught:
        worker.step(1, look)
    assert caught.value.missing_ranks == (1,) and "worker 1 (node b)" in str(caught.value)
    assert heard[-1] < len(worker.model.finished_ranges)


def test_a_peer_that_is_gone_is_named_by_who_only_sends(small_buckets: None, pair: tuple[socket.socket, socket.socket]) -> None:
    worker = Worker(0, pair[0])
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    pair[1].close()
    with pytest.raises(PeerError, match=r"worker 1 \(node b\)") as caught:
        worker.step(1)
    assert caught.value.missing_ranks == (1,)


def test_who_gives_up_in_a_backward_pass_says_whom_it_misses(
    small_buckets: None, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Between two messages it can be said; the rest of the gradients is not sent any more."""
    worker, other = Worker(0, pair[0]), TcpLinks(1, ["a", "b", "c"], {0: pair[1]})
    made, chunk = buckets(worker.model.finished_ranges), worker.layout.chunks[1]
    parts = [memoryview(bytearray(4 * (hi - lo))) for lo, hi in made[0].within(*chunk)]
    other.expect(0, Message.GRADIENTS, 1, parts)
    other.expect(0, Message.GRADIENTS, 1, [memoryview(bytearray(8))])

    def look(count: int) -> None:
        if count == 1:
            raise StopIteration

    with pytest.raises(StopIteration):
        worker.step(1, look)
    worker.links.abort(2, 1)
    with pytest.raises(PeerError, match=r"worker 0 \(node a\) gave up at step 1 for want of worker 2 \(node c\)"):
        other.complete(1, DEADLINE_S, sent=False, late=lambda: None)


def test_a_message_that_does_not_fit_ends_in_the_middle_and_what_waits_behind_it_is_dropped(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    links, large = TcpLinks(0, ["a", "b"], {1: pair[0]}), memoryview(bytes(64 << 20))
    for _ in range(2):
        links.send(1, Message.GRADIENTS, 4, [large])
    links.abort(1, 4)
    received = 0
    while data := pair[1].recv(1 << 20):
        received += len(data)
    assert HEADER.size < received < HEADER.size + len(large)
