"""The exchange layout: chunks cover the vector once, and every node hears of every chunk once."""

from __future__ import annotations

import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from worker.collective.layout import ExchangeLayout, block_borders, chunk_ranges
from worker.nn.shapes import NORM_BLOCK


@given(st.lists(st.integers(1, 3 * NORM_BLOCK), min_size=1, max_size=6), st.integers(1, 64))
def test_chunks_cover_the_vector_and_end_at_block_borders(sizes: list[int], workers: int) -> None:
    tensors, at = [], 0
    for size in sizes:
        tensors.append((at, at + size))
        at += -(-size // 16) * 16
    borders = block_borders(tensors, at)
    chunks = chunk_ranges(borders, workers)
    assert len(chunks) == workers and chunks[0][0] == 0 and chunks[-1][1] == at
    for (_, end), (first, _) in pairwise(chunks):
        assert end == first and end in borders


@given(st.integers(1, 12), st.data())
def test_each_node_sends_and_receives_each_foreign_chunk_once(workers: int, data: st.DataObject) -> None:
    nodes = [f"node-{data.draw(st.integers(0, 3))}" for _ in range(workers)]
    layout = ExchangeLayout(block_borders([(0, 10 * NORM_BLOCK)], 10 * NORM_BLOCK), 16, nodes)
    for owner in range(workers):
        carriers = [rank for rank in range(workers) if owner in layout.carried(rank)]
        assert sorted(nodes[rank] for rank in carriers) == sorted({*nodes} - {nodes[owner]})
        assert carriers == layout.carriers(owner)
    for rank in range(workers):
        assert all(rank in layout.linked(peer) for peer in layout.linked(rank))


def test_a_layout_of_thousands_of_workers_takes_under_a_second() -> None:
    began = time.monotonic()
    nodes = [f"node-{rank // 8}" for rank in range(4096)]
    layout = ExchangeLayout(block_borders([(0, 64 * 1024 * 1024)], 64 * 1024 * 1024), 4096, nodes)
    for rank in (0, 1234, 4095):
        assert len(layout.carried(rank)) == 4088 // 8
    assert time.monotonic() - began < 1
