"""The plan of a step: views, orders of additions and messages for one kind of batch, made once; a step allocates nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np

from worker.collective.buckets import Bucket
from worker.collective.layout import ExchangeLayout
from worker.collective.shared_memory import F32, F64, REPORT_FLOATS
from worker.collective.sums import Addition, ScalarSum, ScratchBlocks, VectorSum
from worker.collective.tree import Subtree
from worker.nn.shapes import BLOCK_FLOATS


@final
@dataclass(frozen=True, slots=True)
class NodeMemory:
    """What the workers of a node share: P parameters, and by rank the gradient vectors (subtrees, P) and the reports.

    `state` is this worker's own: its chunk of each of the optimizer's vectors. `norms`, one for each pass of the update but the
    last, are the sums of squares of all blocks, (vectors, blocks).
    """

    parameters: F32
    gradients: Mapping[int, F32]
    reports: Mapping[int, F64]
    state: tuple[F32, ...]
    norms: tuple[F64, ...] = ()


@final
@dataclass(slots=True)
class StepSums:
    """The sums of a step over the whole batch. When not `finite`, nothing was applied, on any worker."""

    loss_sum: float
    denominator: float
    finite: bool


@final
@dataclass(frozen=True, slots=True)
class Block:
    """A block of the own chunk, from `first` of the vector: sums along the tree, then the update.

    `gradient` is scratch that the blocks share, or the block's own where the update keeps it.
    """

    first: int
    additions: list[Addition]
    total: F32
    gradient: F32
    parameters: F32
    state: tuple[F32, ...]


@final
@dataclass(frozen=True, slots=True)
class NodeSums:
    """What goes to the owner of a chunk on another node: by bucket, additions to carry out and then the parts of a message,
    none where the bucket has nothing of the chunk. The node's report ends the last."""

    owner: int
    pieces: list[tuple[list[Addition], list[memoryview]]]


@final
class StepPlan:
    """The plan of worker `rank` for batches whose first `filled` shards have rows; no block of its chunk crosses a cut.

    `buckets` cover the vector, in the order in which they cross; the whole vector is one unless given.
    With `keeps` the mean gradient of the chunk stays after a block was left: in the worker's own first vector, of which nobody
    else reads the worker's own chunk.
    """

    def __init__(
        self,
        layout: ExchangeLayout,
        rank: int,
        memory: NodeMemory,
        filled: int,
        scratch: ScratchBlocks,
        cuts: Sequence[int] = (),
        keeps: bool = False,
        buckets: Sequence[Bucket] = (),
    ) -> None:
        self.buckets = buckets or (Bucket(0, ((0, layout.size),)),)
        self._layout, self._memory, self._scratch, self._node = layout, memory, scratch, layout.nodes[rank]
        self._members = layout.members[self._node]
        self._kept = memory.gradients[rank][0] if keeps else None
        # Where the vector of each subtree of this node lies: (worker, index among its vectors).
        self._local: dict[Subtree, tuple[int, int]] = {
            subtree: (member, index)
            for member in self._members
            for index, subtree in enumerate(layout.worker_subtrees(member, filled))
        }
        self._node_subtrees = layout.node_subtrees(self._node, filled)
        self._node_report: F64 = np.zeros(REPORT_FLOATS)
        self._node_totals = [ScalarSum(subtree, self._local) for subtree in self._node_subtrees]

        first, end = layout.chunks[rank]
        vectors = {s: memory.gradients[member][index, first:end] for s, (member, index) in self._local.items()}
        places = dict(self._local)
        self._reports: dict[int, F64] = {member: memory.reports[member] for member in self._members}
        self.gradients_in: list[tuple[int, list[memoryview]]] = []
        for node in layout.members:
            if node == self._node:
                continue
            carrier, remote, report = layout.carrier(node, rank), layout.node_subtrees(node, filled), np.zeros(REPORT_FLOATS)
            received = np.zeros((len(remote), end - first), np.float32)
            vectors.update(zip(remote, received, strict=True))
            places.update({subtree: (carrier, index) for index, subtree in enumerate(remote)})
            self._reports[carrier] = report
            messages = [message_parts(*_pieces(received, bucket, first, end)) for bucket in self.buckets]
            messages[-1] += message_parts(report)
            self.gradients_in += [(carrier, parts) for parts in messages if parts]
        self._total = ScalarSum((0, layout.shards), places)
        borders = [first, *(cut for cut in cuts if first < cut < end), end]
        self.blocks = [
            self._block(vectors, first, at, min(at + BLOCK_FLOATS, last))
            for begin, last in pairwise(borders)
            for at in range(begin, last, BLOCK_FLOATS)
        ]
        self.gradients_out = [self._sums_for(owner) for owner in layout.carried(rank)]
        own = message_parts(memory.parameters[first:end])
        self.parameters_out = [(carrier, own) for carrier in layout.carriers(rank) if own]
        carried = [(owner, message_parts(memory.parameters[slice(*layout.chunks[owner])])) for owner in layout.carried(rank)]
        self.parameters_in = [(owner, parts) for owner, parts in carried if parts]

    def total(self) -> StepSums:
        """The sums over the batch, out of all reports; the same on every worker."""
        loss_sum, denominator = self._total.of(self._reports)
        finite = True
        for report in self._reports.values():
            finite &= report.item(0) == 1.0
        return StepSums(loss_sum, denominator, finite)

    def report_node(self) -> None:
        """Joins the reports of the node's workers into the one that other nodes get."""
        report, reports = self._node_report, self._memory.reports
        report[0] = min(float(reports[member][0]) for member in self._members)
        for index, sums in enumerate(self._node_totals):
            report[1 + 2 * index], report[2 + 2 * index] = sums.of(reports)

    def _block(self, vectors: Mapping[Subtree, F32], chunk_first: int, at: int, end: int) -> Block:
        inner = slice(at - chunk_first, end - chunk_first)
        pieces = {subtree: vector[inner] for subtree, vector in vectors.items()}
        sums = VectorSum((0, self._layout.shards), pieces, self._scratch)
        state = tuple(vector[inner] for vector in self._memory.state)
        gradient = sums.free if self._kept is None else self._kept[at:end]
        return Block(at, sums.additions, sums.total, gradient, self._memory.parameters[at:end], state)

    def _sums_for(self, owner: int) -> NodeSums:
        """This node's sums of the owner's chunk, one per subtree: a worker's own vector, or summed into memory for it."""
        first, end = self._layout.chunks[owner]
        pieces: list[tuple[list[Addition], list[memoryview]]] = [([], []) for _ in self.buckets]
        vectors: list[F32] = []
        for subtree in self._node_subtrees:
            inside = [place for s, place in self._local.items() if subtree[0] <= s[0] and s[1] <= subtree[1]]
            if len(inside) == 1:  # the subtree itself, or the only part of it that has rows
                member, index = inside[0]
                vectors.append(self._memory.gradients[member][index, first:end])
                continue
            vectors.append(np.zeros(end - first, np.float32))
            for bucket, (additions, _) in zip(self.buckets, pieces, strict=True):
                for lo, hi in bucket.within(first, end):
                    additions += self._additions(subtree, lo, hi, vectors[-1][lo - first : hi - first])
        for bucket, (_, parts) in zip(self.buckets, pieces, strict=True):
            parts += message_parts(*_pieces(vectors, bucket, first, end))
        pieces[-1][1].extend(message_parts(self._node_report))
        return NodeSums(owner, pieces)

    def _additions(self, subtree: Subtree, first: int, end: int, target: F32) -> list[Addition]:
        """Those that sum the node's vectors over a subtree at [first, end), block by block."""
        additions: list[Addition] = []
        for at in range(first, end, BLOCK_FLOATS):
            to = min(at + BLOCK_FLOATS, end)
            pieces = {s: self._memory.gradients[member][index, at:to] for s, (member, index) in self._local.items()}
            additions += VectorSum(subtree, pieces, self._scratch, target[at - first : to - first]).additions
        return additions


def _pieces(vectors: Sequence[F32] | F32, bucket: Bucket, first: int, end: int) -> list[F32]:
    """The parts of a bucket out of vectors of the chunk [first, end), range by range."""
    return [vector[lo - first : hi - first] for lo, hi in bucket.within(first, end) for vector in vectors]


def message_parts(*arrays: F32 | F64) -> list[memoryview]:
    """The bytes of each array, to be sent or received into; empty ones are left out."""
    return [array.data.cast("B") for array in arrays if array.size]
