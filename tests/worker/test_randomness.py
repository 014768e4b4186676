"""Streams, the numbers made of them, the order of rows and the split: golden values and theorems."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.contract.arithmetic import validation_count
from worker.randomness import BLOCK_WORDS, Purpose, Stream, epoch_order, normal, uniform, validation_split

GOLDEN_WORDS = ["0x2546cea374fcea10", "0x9d2d9f2852725087", "0x6c0f858d2b0933d6"]
GOLDEN_UNIFORM = [0.9157235622406006, 0.949630856513977, 0.7484337091445923, 0.6999867558479309]
GOLDEN_NORMAL = [-2.2241461277008057, -2.3250229358673096, -0.02188912220299244, -0.7556589841842651]
GOLDEN_ORDER = [4, 2, 1, 6, 7, 5, 3, 0]
GOLDEN_VALIDATION = [3, 5, 9]


def stream(seed: int = 7) -> Stream:
    return Stream(seed, Purpose.INITIAL_WEIGHTS, layer=2)


def test_golden_words() -> None:
    words = Stream(7, Purpose.DROPOUT, layer=3, shard=5, time=11).words(3)
    assert [hex(word) for word in words.tolist()] == GOLDEN_WORDS


def test_golden_numbers() -> None:
    assert uniform(stream(), 4).tolist() == GOLDEN_UNIFORM
    assert [float(z) for z in normal(stream(), 4)] == GOLDEN_NORMAL
    assert epoch_order(7, 3, 8).tolist() == GOLDEN_ORDER
    assert validation_split(7, 10, 0.3)[1].tolist() == GOLDEN_VALIDATION


def test_large_seeds_are_not_rounded() -> None:
    seeds = [2**64 - 1, 2**64 - 2, 2**53, 2**53 + 1]
    assert len({Stream(seed, Purpose.ORDER).words(1).item() for seed in seeds}) == 4


def test_streams_differ_in_each_part() -> None:
    streams = [
        Stream(1, Purpose.ORDER),
        Stream(2, Purpose.ORDER),
        Stream(1, Purpose.SPLIT),
        Stream(1, Purpose.ORDER, layer=1),
        Stream(1, Purpose.ORDER, shard=1),
        Stream(1, Purpose.ORDER, time=1),
    ]
    assert len({tuple(each.words(4).tolist()) for each in streams}) == len(streams)


@pytest.mark.parametrize("make", [uniform, normal])
@pytest.mark.parametrize("count", [1, 2, 3, BLOCK_WORDS - 1, BLOCK_WORDS + 1, 2 * BLOCK_WORDS + 5])
def test_as_many_numbers_as_asked_for(make: object, count: int) -> None:
    numbers = (uniform if make is uniform else normal)(stream(), count)
    assert (numbers.shape, numbers.dtype) == ((count,), np.dtype(np.float32))
    assert np.isfinite(numbers).all()


def test_moments() -> None:
    u, z = uniform(stream(), 200_000), normal(stream(), 200_000)
    assert 0 <= u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=5e-3)
    assert z.mean() == pytest.approx(0, abs=1e-2)
    assert z.std() == pytest.approx(1, abs=1e-2)
    assert (z**4).mean() == pytest.approx(3, abs=0.1)
    half = BLOCK_WORDS // 2
    assert np.corrcoef(z[:half], z[half : 2 * half])[0, 1] == pytest.approx(0, abs=0.05)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 1000), rows=st.integers(0, 300))
def test_an_order_is_a_permutation(seed: int, epoch: int, rows: int) -> None:
    order = epoch_order(seed, epoch, rows)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(rows))


def test_each_epoch_has_its_order() -> None:
    orders = {tuple(epoch_order(7, epoch, 50).tolist()) for epoch in range(20)}
    assert len(orders) == 20


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), rows=st.integers(1, 300), fraction=st.floats(0, 1, exclude_max=True))
def test_a_split_divides_the_rows(seed: int, rows: int, fraction: float) -> None:
    training, validation = validation_split(seed, rows, fraction)
    assert sorted([*training.tolist(), *validation.tolist()]) == list(range(rows))
    assert training.tolist() == sorted(training.tolist())
    assert validation.tolist() == sorted(validation.tolist())
    assert len(validation) == validation_count(rows, fraction)
    assert abs(len(validation) - rows * fraction) <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("rows", "fraction", "count"), [(1797, 0.2, 359), (10, 0.25, 3), (5, 0.1, 1), (4, 0.1, 0), (2**53, 0.5, 2**52)]
)
def test_validation_counts(rows: int, fraction: float, count: int) -> None:
    assert validation_count(rows, fraction) == count


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 4294967296"):
        epoch_order(0, 0, 2**33)
