"""Gradient stacks into subtrees: sums of shards along the tree, planned once per stack shape.

A node (a, b) of the tree covers the shards [a, b) and is node(a, m) + node(m, b) with m = (a + b) // 2. Shards at or past the
number of leaves are empty: a node with an empty side is its other side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TypeAlias, TypeVar, final

import numpy as np

from lockstep.contract.errors import InternalError
from worker.nn.arena import Arena
from worker.nn.parameters import Array
from worker.nn.shapes import BLOCK_FLOATS, ParameterLayout, TensorEntry

# A node of the tree: the shards [a, b).
Subtree: TypeAlias = tuple[int, int]
T = TypeVar("T")


def evaluate(node: Subtree, leaves: int, leaf: Callable[[int], T], add: Callable[[T, T, bool], T], top: bool = True) -> T:
    """The value of a node: `leaf(i)` at the shards, `add(left, right, top)` above them; empty shards are left out."""
    first, end = node
    if end - first == 1:
        return leaf(first)
    middle = (first + end) // 2
    if middle >= leaves:
        return evaluate((first, middle), leaves, leaf, add, top)
    left = evaluate((first, middle), leaves, leaf, add, False)
    return add(left, evaluate((middle, end), leaves, leaf, add, False), top)


def tree_sum(node: Subtree, values: Sequence[float]) -> float:
    """The sum of float64 values along the tree below `node`."""
    if len(values) == 1:
        return values[0]

    def leaf(shard: int) -> float:
        return values[shard]

    def add(left: float, right: float, top: bool) -> float:
        return left + right

    return evaluate(node, len(values), leaf, add)


def check_nodes(nodes: Sequence[Subtree], leaves: int) -> None:
    """Raises InternalError unless the nodes cover the leaves once, in order; the last may end past them."""
    at = 0
    for first, end in nodes:
        if first != at or end <= first or first >= leaves:
            raise InternalError(f"subtrees {list(nodes)} do not cover {leaves} shards in order")
        at = end
    if at < leaves:
        raise InternalError(f"subtrees {list(nodes)} do not cover {leaves} shards in order")


@final
@dataclass(frozen=True, slots=True)
class Span:
    """A range of the flat vector whose gradients are combined together, after the backward pass of layer `layer`."""

    layer: int
    first: int
    end: int
    entries: tuple[TensorEntry, ...]


def spans(layout: ParameterLayout) -> list[Span]:
    """Cuts the vector between tensors: small neighbours together, so that few calls combine them; large ones alone.

    A span is complete with the backward pass of the lowest of its layers, since that pass goes down.
    """
    groups: list[list[TensorEntry]] = []
    for entry in layout.entries:
        if groups and entry.offset + entry.size - groups[-1][0].offset <= BLOCK_FLOATS:
            groups[-1].append(entry)
        else:
            groups.append([entry])
    if not groups:
        return []
    ends = [group[0].offset for group in groups[1:]] + [layout.size]
    return [
        Span(min(entry.layer for entry in group), group[0].offset, end, tuple(group))
        for group, end in zip(groups, ends, strict=True)
    ]


@final
@dataclass(slots=True)
class Program:
    """What combines one span: sums, copies of single shards, gaps set to zero, and the look for what is not finite."""

    adds: list[tuple[Array, Array, Array]] = field(default_factory=list)
    copies: list[tuple[Array, Array]] = field(default_factory=list)
    gaps: list[Array] = field(default_factory=list)
    looks: list[Array] = field(default_factory=list)

    def run(self) -> bool:
        """Combines; False if a sum is not finite."""
        add = np.add
        for left, right, out in self.adds:
            add(left, right, out)
        for source, out in self.copies:
            np.copyto(out, source)
        for gap in self.gaps:
            gap.fill(0)
        return all_finite(self.looks)


def all_finite(vectors: Sequence[Array]) -> bool:
    """Whether all numbers of the vectors are finite.

    A sum of squares is the fastest look at a vector: if it is finite, so are all terms. It may overflow where no number does;
    then the largest and the smallest decide.
    """
    for vector in vectors:
        if not isfinite(vector.dot(vector)):
            extremes = np.maximum.reduce(vector), np.minimum.reduce(vector)
            if not all(map(isfinite, extremes)):
                return False
    return True


def plan_span(span: Span, nodes: Sequence[Subtree], stack: Array | None, gradients: Array) -> Program:
    """The program that sums `stack` (leaves, span) into `gradients` (subtrees, P) at the span.

    `stack` is None where every subtree is one shard, whose gradient was written in place.
    """
    program = Program()
    for first in range(span.first, span.end, BLOCK_FLOATS):
        end = min(first + BLOCK_FLOATS, span.end)
        for row, node in enumerate(nodes):
            out = gradients[row, first:end]
            if stack is not None:
                _plan_node(program, node, stack[:, first - span.first : end - span.first], out)
            program.looks.append(out)
    if stack is not None:
        for entry, following in zip(span.entries, [*span.entries[1:], None], strict=True):
            end = following.offset if following else span.end
            if entry.offset + entry.size < end:
                program.gaps.extend(gradients[row, entry.offset + entry.size : end] for row in range(len(nodes)))
    return program


def _plan_node(program: Program, node: Subtree, block: Array, out: Array) -> None:
    def add(left: Array, right: Array, top: bool) -> Array:
        target = out if top else left
        program.adds.append((left, right, target))
        return target

    result = evaluate(node, len(block), lambda leaf: block[leaf], add)
    if result is not out:
        program.copies.append((result, out))


def span_stacks(all_spans: Sequence[Span], leaves: int, dtype: np.dtype[np.floating]) -> list[Array]:
    """Scratch for each span's stack, (leaves, span); spans that the backward pass never has open at once share."""
    arena = Arena(np.dtype(dtype))
    for _ in range(2):
        stacks = [
            arena.array((leaves, span.end - span.first), None, -max(entry.layer for entry in span.entries), -span.layer)
            for span in all_spans
        ]
        if not arena.placed:
            arena.place()
    return stacks
