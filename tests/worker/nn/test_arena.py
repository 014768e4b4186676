"""The buffer layout: arrays that live at once never share memory; others do."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.nn.arena import Arena

lives = st.lists(st.tuples(st.integers(1, 400), st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=20)


@given(lives)
def test_arrays_that_live_at_once_are_apart(asked: list[tuple[int, int, int]]) -> None:
    arena = Arena(np.dtype(np.float32))
    for _ in range(2):
        arrays = [arena.array((size,), None, first, first + length) for size, first, length in asked]
        if not arena.placed:
            arena.place()
    for at, (one, (_, first, length)) in enumerate(zip(arrays, asked, strict=True)):
        assert one.ctypes.data % 64 == 0
        for other, (_, start, span) in list(zip(arrays, asked, strict=True))[:at]:
            if first <= start + span and start <= first + length:
                assert not np.may_share_memory(one, other)


def test_lives_that_follow_each_other_share() -> None:
    arena = Arena(np.dtype(np.float32))
    for moment in range(10):
        arena.array((1024,), None, moment, moment)
    arena.place()
    assert arena.size_bytes == 4096


def test_a_use_of_a_view_lengthens_the_life() -> None:
    arena = Arena(np.dtype(np.float32))
    first = arena.array((64, 2), None, 0, 0)
    arena.array((128,), None, 1, 1)
    arena.use(first.reshape(-1)[3:].T, 1)
    arena.place()
    assert arena.size_bytes == 1024


def test_nobody_writes_a_constant() -> None:
    arena = Arena(np.dtype(np.float32))
    ones = arena.constant((3, 2), 1, None)
    assert ones.flags.c_contiguous
    assert not ones.flags.writeable
    assert (arena.constant((100,), 1, None) == 1).all()
