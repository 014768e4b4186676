"""The tree: subtrees cover a range once, and sums over them are the sum over the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.collective.tree import fold, owned_shards, subtrees


def plain(first: int, end: int, filled: int) -> str | None:
    """The tree's sum written out; shards from `filled` on are empty."""
    if first >= filled:
        return None
    if end - first == 1:
        return str(first)
    middle = (first + end) // 2
    left, right = plain(first, middle, filled), plain(middle, end, filled)
    return left if right is None else f"({left}+{right})"


@given(st.integers(1, 64), st.data())
def test_sums_over_any_owners_are_the_plain_tree(shards: int, data: st.DataObject) -> None:
    workers, filled = data.draw(st.integers(1, shards)), data.draw(st.integers(1, shards))
    known = {}
    covered: list[int] = []
    for rank in range(workers):
        lo, hi = owned_shards(rank, workers, shards)
        assert lo < hi
        for first, end in subtrees(0, shards, lo, hi):
            covered += range(first, end)
            if first < filled:
                known[first, end] = plain(first, end, filled)
    assert covered == list(range(shards))
    assert fold(0, shards, lambda a, b: known.get((a, b)), lambda left, right: f"({left}+{right})") == plain(0, shards, filled)


@pytest.mark.parametrize(("workers", "shards"), [(1, 1), (1, 64), (3, 8), (8, 8), (5, 7), (64, 64)])
def test_a_worker_owns_few_subtrees(workers: int, shards: int) -> None:
    for rank in range(workers):
        assert 1 <= len(subtrees(0, shards, *owned_shards(rank, workers, shards))) <= 2 * shards.bit_length()
