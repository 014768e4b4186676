"""Groups whose workers are threads over links in memory, and the plain tree sum that their reduction must give."""

from __future__ import annotations

import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.worker.collective.memory_links import MemoryNetwork
from worker.collective.barrier import Barrier
from worker.collective.buckets import Range
from worker.collective.layout import ExchangeLayout, block_borders
from worker.collective.links import Links
from worker.collective.norms import Norms
from worker.collective.peers import Deadlines
from worker.collective.plan import NodeMemory, StepSums
from worker.collective.reduce import Reduction, Update
from worker.collective.shared_memory import F32, REPORT_FLOATS

DEADLINE_S = 60.0  # threads of one interpreter take turns, and the machine may be busy


def take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are threads here, and sched_yield would keep the interpreter: sleeping hands it on."""
    monkeypatch.setattr(os, "sched_yield", lambda: time.sleep(1e-5))


class OnePass:
    """Of an update that needs no norms."""

    cuts: Sequence[int] = ()
    learned = sys.maxsize
    norms: Norms | None = None

    def begin(self, number: int) -> None:
        raise AssertionError(f"there is no pass {number}")


class Descent(OnePass):
    """w -= rate * g, with the gradients that came kept in a state vector."""

    def apply(
        self,
        first: int,
        parameters: F32,
        gradient: F32,
        state: Sequence[F32],
        step: int,
        learning_rate: float,
        number: int = 0,
    ) -> None:
        np.add(state[0], gradient, out=state[0])
        np.subtract(parameters, np.float32(learning_rate) * gradient, out=parameters)


class Keep(OnePass):
    """Keeps the gradient as it came."""

    def apply(
        self,
        first: int,
        parameters: F32,
        gradient: F32,
        state: Sequence[F32],
        step: int,
        learning_rate: float,
        number: int = 0,
    ) -> None:
        np.copyto(state[0], gradient)


def plain_sum(first: int, end: int, shards: list[F32], filled: int) -> F32 | None:
    """node(a, b) = node(a, m) + node(m, b), empty shards left out."""
    if first >= filled:
        return None
    if end - first == 1:
        return shards[first]
    middle = (first + end) // 2
    left, right = plain_sum(first, middle, shards, filled), plain_sum(middle, end, shards, filled)
    return left if left is None or right is None else left + right


class PlainWords:
    """A worker's words outside of a segment."""

    def __init__(self) -> None:
        self.arrived, self.stopped, self.excused, self.announced = (np.zeros(1, np.int64).data for _ in range(4))


class Group:
    """Workers as threads; a node's memory is plain arrays."""

    def __init__(
        self,
        nodes: Sequence[str],
        shards: int,
        size: int,
        make: Callable[[], Update] = Descent,
        tensors: Sequence[tuple[int, int]] = (),
        vectors: int = 1,
        finished_ranges: Sequence[Range] = (),
    ) -> None:
        self.nodes, self.shards, self.finished_ranges = list(nodes), shards, finished_ranges
        self.layout = ExchangeLayout(block_borders(tensors or [(0, size)], size), shards, nodes)
        updates = [make() for _ in nodes]
        norms = updates[0].norms
        sums = {node: tuple(np.zeros((rows, norms.blocks)) for rows in norms.rows) if norms else () for node in nodes}
        self.network = MemoryNetwork()
        self.parameters = {node: np.zeros(size, np.float32) for node in self.layout.members}
        self.gradients, self.reports, words = {}, {}, {}
        for rank in range(len(nodes)):
            subtrees = len(self.layout.worker_subtrees(rank, shards))
            self.gradients[rank] = np.zeros((subtrees, size), np.float32)
            self.reports[rank] = np.zeros(REPORT_FLOATS)
            words[rank] = PlainWords()
        self.states = {
            rank: tuple(np.zeros(end - first, np.float32) for _ in range(vectors))
            for rank, (first, end) in enumerate(self.layout.chunks)
        }
        self.reductions = []
        for rank, node in enumerate(nodes):
            members = self.layout.members[node]
            barrier = Barrier(rank, nodes, {m: words[m] for m in members}, dict[int, int]())
            barrier._spins = 0
            memory = NodeMemory(
                self.parameters[node],
                {m: self.gradients[m] for m in members},
                {m: self.reports[m] for m in members},
                self.states[rank],
                sums[node],
            )
            links: Links = self.network.links(rank)
            deadlines = Deadlines(DEADLINE_S, DEADLINE_S)
            self.reductions.append(
                Reduction(self.layout, rank, memory, barrier, links, updates[rank], deadlines, finished_ranges)
            )

    def step(self, step: int, filled: int, shards: list[F32], losses: list[float], finite: Sequence[bool]) -> list[StepSums]:
        """One step on all workers, whose shards have these gradients."""
        results: dict[int, StepSums] = {}
        errors: list[BaseException] = []

        def run(rank: int) -> None:
            sums: tuple[list[float], list[float]] = [], []
            vectors = []
            for first, end in self.layout.worker_subtrees(rank, filled):
                vector = plain_sum(first, end, shards, filled)
                assert vector is not None
                vectors.append(vector)
                sums[0].append(math.fsum(losses[first : min(end, filled)]))
                sums[1].append(float(min(end, filled) - first))
            try:
                self._backward(rank, filled, step, vectors)
                results[rank] = self.reductions[rank].step(filled, 10 * filled, step, 0.5, finite[rank], *sums)
            except BaseException as error:
                errors.append(error)

        self.network.events.clear()
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(self.nodes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if errors:
            raise errors[0]
        return [results[rank] for rank in range(len(self.nodes))]

    def _backward(self, rank: int, filled: int, step: int, vectors: list[F32]) -> None:
        """Writes the sums range by range, as a backward pass does, and announces them where it is wanted."""
        self.gradients[rank].fill(np.nan)
        finished = self.reductions[rank].begin(filled, step) if self.reductions[rank].overlaps else None
        if not vectors:
            return
        for count, (first, end) in enumerate(self.finished_ranges or [(0, self.layout.size)], start=1):
            for index, vector in enumerate(vectors):
                self.gradients[rank][index, first:end] = vector[first:end]
            self.network.events.append((rank, f"finished {count}"))
            if finished is not None:
                finished(count)


def cases() -> list[tuple[int, int, int, int]]:
    """(seed, workers, shards, nodes): corners, then drawn ones."""
    chosen = [(0, 1, 1, 1), (1, 1, 8, 1), (2, 8, 8, 1), (3, 8, 8, 8), (4, 5, 7, 2), (5, 64, 64, 9), (6, 3, 64, 3)]
    draw = random.Random(11)
    for seed in range(7, 32):
        shards = draw.randint(1, 64)
        workers = draw.randint(1, min(shards, 12))
        chosen.append((seed, workers, shards, draw.randint(1, workers)))
    return chosen


def takes_plain_steps(groups: Sequence[Group], draw: np.random.Generator) -> None:
    """Each of the groups, equal but for how they exchange, takes three steps of Descent, the last with empty shards or not:
    sums, parameters and state are those of the plain tree sum."""
    shards, size = groups[0].shards, groups[0].layout.size
    parameters, state = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for step, filled in enumerate((shards, shards, int(draw.integers(1, shards + 1))), start=1):
        gradients = [draw.normal(size=size).astype(np.float32) for _ in range(shards)]
        losses = [float(draw.integers(0, 1000)) for _ in range(shards)]
        total = plain_sum(0, shards, gradients, filled)
        assert total is not None
        mean = total / np.float32(filled)
        state += mean
        parameters = parameters - np.float32(0.5) * mean
        for group in groups:
            workers = len(group.nodes)
            results = group.step(step, filled, gradients, losses, [True] * workers)
            assert results == [StepSums(sum(losses[:filled]), float(filled), True)] * workers
    for group in groups:
        for node in group.parameters.values():
            assert node.tobytes() == parameters.tobytes()
        assert np.concatenate([own for (own,) in group.states.values()]).tobytes() == state.tobytes()


def sums_any_number_of_shards(group: Group) -> None:
    """A group that keeps its gradients gives the plain tree sum for each number of shards with rows."""
    shards, draw = group.shards, np.random.default_rng(2)
    for filled in range(1, shards + 1):
        gradients = [draw.normal(size=group.layout.size).astype(np.float32) for _ in range(shards)]
        group.step(filled, filled, gradients, [0.0] * shards, [True] * len(group.nodes))
        total = plain_sum(0, shards, gradients, filled)
        assert total is not None
        kept = np.concatenate([own for (own,) in group.states.values()])
        assert kept.tobytes() == (total / np.float32(filled)).tobytes(), filled
