"""The fixed binary tree over shards (or blocks of rows): which ranges are its nodes, who owns them, and sums along it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

# A node of the tree, named by the leaves below it: [first, end). Called a subtree, since a node is a machine here.
Subtree = tuple[int, int]

T = TypeVar("T")


def owned_shards(rank: int, workers: int, shards: int) -> Subtree:
    """The contiguous range [first, end) of shards that worker `rank` of `workers` owns; for blocks of rows likewise."""
    return rank * shards // workers, (rank + 1) * shards // workers


def subtrees(first: int, end: int, lo: int, hi: int) -> list[Subtree]:
    """The largest subtrees inside [lo, hi), in ascending order, of the tree over [first, end)."""
    if first >= end or end <= lo or hi <= first:
        return []
    if lo <= first and end <= hi:
        return [(first, end)]
    middle = (first + end) // 2
    return subtrees(first, middle, lo, hi) + subtrees(middle, end, lo, hi)


def fold(first: int, end: int, known: Callable[[int, int], T | None], add: Callable[[T, T], T]) -> T | None:
    """The sum over [first, end): node(a, b) = node(a, m) + node(m, b), m = (a + b) // 2.

    `known(a, b)` gives a sum that is there already, or None: then the two halves are asked. A leaf without a sum is an empty
    shard: it is never added, its node is its sibling's (adding zeros would turn -0.0 into 0.0). None if all are empty.
    """
    value = known(first, end)
    if value is not None or end - first <= 1:
        return value
    middle = (first + end) // 2
    left = fold(first, middle, known, add)
    right = fold(middle, end, known, add)
    if left is None:
        return right
    if right is None:
        return left
    return add(left, right)
