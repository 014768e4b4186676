"""The exchange layout: which worker owns which chunk of the flat vectors and which shards, and who carries what between nodes.

A chunk is summed and updated by its owner. On every other node one worker, the carrier, sends that node's sums for the chunk
to the owner and takes the updated parameters back: so each subtree's vector crosses once, and each parameter once a node.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import final

from worker.collective.tree import Subtree, owned_shards, subtrees
from worker.nn.shapes import NORM_BLOCK


def block_borders(tensors: Iterable[tuple[int, int]], size: int) -> list[int]:
    """Where a norm's block may begin, ascending, 0 and `size` included; `tensors` are ranges (first, end) of the vector."""
    borders = {0, size}
    for first, end in tensors:
        borders.update(range(first, end, NORM_BLOCK))
    return sorted(borders)


def chunk_ranges(borders: Sequence[int], workers: int) -> tuple[tuple[int, int], ...]:
    """The chunk [first, end) of each worker: about equal parts whose ends are `borders`; a small vector leaves some empty."""
    size, cuts = borders[-1], [0]
    for rank in range(1, workers):
        wanted = rank * size // workers
        after = bisect_left(borders, wanted)
        nearest = borders[after] if after == 0 or borders[after] - wanted <= wanted - borders[after - 1] else borders[after - 1]
        cuts.append(max(nearest, cuts[-1]))
    cuts.append(size)
    return tuple(pairwise(cuts))


@final
class ExchangeLayout:
    """Owners and carriers of a group of `len(nodes)` workers; `nodes[rank]` is a worker's node, `shards` the V of the job.

    Workers of one node best have neighbouring ranks, so that their subtrees join before they cross; any split is right.
    """

    def __init__(self, borders: Sequence[int], shards: int, nodes: Sequence[str]) -> None:
        self.size, self.shards, self.workers, self.nodes = borders[-1], shards, len(nodes), tuple(nodes)
        self.chunks = chunk_ranges(borders, len(nodes))
        members: dict[str, list[int]] = {}
        self._place: list[int] = []
        for rank, node in enumerate(nodes):
            ranks = members.setdefault(node, [])
            self._place.append(len(ranks))
            ranks.append(rank)
        self.members = {node: tuple(ranks) for node, ranks in members.items()}

    def leader(self, node: str) -> int:
        """The worker whose segment holds the node's parameters."""
        return self.members[node][0]

    def carrier(self, node: str, owner: int) -> int:
        """The worker of `node` that sends the node's sums for `owner`'s chunk and receives its parameters."""
        ranks = self.members[node]
        return ranks[self._place[owner] % len(ranks)]

    def carried(self, rank: int) -> list[int]:
        """The owners on other nodes whose chunks `rank` carries on its node, ascending."""
        node = self.nodes[rank]
        return [owner for owner in range(self.workers) if self.nodes[owner] != node and self.carrier(node, owner) == rank]

    def carriers(self, rank: int) -> list[int]:
        """The workers that carry the chunk of `rank`, one on each other node, ascending."""
        return sorted(self.carrier(node, rank) for node in self.members if node != self.nodes[rank])

    def linked(self, rank: int) -> list[int]:
        """The workers of other nodes with which `rank` exchanges, ascending."""
        return sorted({*self.carried(rank), *self.carriers(rank)})

    def worker_subtrees(self, rank: int, filled: int) -> list[Subtree]:
        """The largest subtrees that `rank` sums alone when the first `filled` shards have rows; those without rows left out."""
        owned = owned_shards(rank, self.workers, self.shards)
        return [subtree for subtree in subtrees(0, self.shards, *owned) if subtree[0] < filled]

    def node_subtrees(self, node: str, filled: int) -> list[Subtree]:
        """The largest subtrees that the workers of `node` sum together, over each run of neighbouring ranks."""
        found: list[Subtree] = []
        run: list[int] = []
        for rank in (*self.members[node], -1):
            if run and rank != run[-1] + 1:
                lo, hi = owned_shards(run[0], self.workers, self.shards)[0], owned_shards(run[-1], self.workers, self.shards)[1]
                found += subtrees(0, self.shards, lo, hi)
                run = []
            run.append(rank)
        return [subtree for subtree in found if subtree[0] < filled]
