"""Norms: sums of squares whose blocks are the tensors' own, whoever measures them and in whatever pieces."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.nn.networks import dense_net
from worker.collective.layout import block_borders
from worker.nn.norms import Norms
from worker.nn.shapes import NORM_BLOCK, ParameterLayout, parameter_layout

# Weights of 150 * 130, 7 * 150 and 4 * 7 floats, and their biases: a large tensor and small ones, with gaps behind them.
LAYOUT = parameter_layout(dense_net([150, 7, 4], inputs=(130,)))
BORDERS = block_borders([(entry.offset, entry.offset + entry.size) for entry in LAYOUT.entries], LAYOUT.size)


def drawn() -> np.ndarray:
    return np.random.default_rng(3).standard_normal(LAYOUT.size).astype(np.float32)


def test_totals_are_the_sums_of_squares_of_tensors_without_the_gaps() -> None:
    norms = Norms(LAYOUT, (1, 2))
    vector = drawn()  # the gaps are not zero here, and must not count
    norms.measure(1, 1, 0, vector)
    tensors = [vector[entry.offset : entry.offset + entry.size].astype(np.float64) for entry in LAYOUT.entries]
    assert norms.blocks == sum(math.ceil(len(tensor) / NORM_BLOCK) for tensor in tensors)
    for number, (entry, tensor) in enumerate(zip(LAYOUT.entries, tensors, strict=True)):
        assert norms.tensor_at(entry.offset) == norms.tensor_at(entry.offset + entry.size - 1) == number
        np.testing.assert_allclose(norms.tensor_total(1, 1, number), math.fsum(tensor * tensor), rtol=1e-14)
    np.testing.assert_allclose(norms.total(1, 1), math.fsum(x * x for tensor in tensors for x in tensor), rtol=1e-14)
    assert norms.total(0, 0) == norms.total(1, 0) == 0


def test_state_is_in_no_norm() -> None:
    learned = LAYOUT.entries[-1].offset
    layout = ParameterLayout(LAYOUT.size, LAYOUT.decayed, learned, LAYOUT.entries)
    norms, vector = Norms(layout, (1,)), drawn()
    norms.measure(0, 0, 0, vector)
    total = norms.total(0, 0)
    vector[learned:] = 1e9
    norms.measure(0, 0, 0, vector)
    assert norms.total(0, 0) == total
    assert norms.range_of(learned, layout.size) == (norms.blocks, norms.blocks)


@settings(max_examples=40, deadline=None)
@given(cuts=st.sets(st.sampled_from(BORDERS[1:-1]), max_size=4))
def test_any_cut_at_borders_gives_the_same_bits(cuts: set[int]) -> None:
    whole, pieces, vector = Norms(LAYOUT, (1,)), Norms(LAYOUT, (1,)), drawn()
    whole.measure(0, 0, 0, vector)
    shared = np.zeros((1, pieces.blocks))
    pieces.share([shared])
    for first, end in pairwise([0, *sorted(cuts), LAYOUT.size]):
        pieces.measure(0, 0, first, vector[first:end].copy())
    assert pieces.total(0, 0) == whole.total(0, 0) == float(np.add.reduce(shared[0]))
    for tensor in range(len(LAYOUT.entries)):
        assert pieces.tensor_total(0, 0, tensor) == whole.tensor_total(0, 0, tensor)
