"""A snapshot out of the ranges that workers offer: each float from one of them, whatever the number of workers."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.snapshots import assemble
from lockstep.contract.errors import InternalError

WHOLE = np.arange(9, dtype=np.float32)


def parts(*ranges: tuple[int, int]) -> list[dict[tuple[str, int, int], np.ndarray[tuple[int], np.dtype[np.float32]]]]:
    """What workers offer of the vector m."""
    return [{("m", first, end): WHOLE[first:end]} for first, end in ranges]


@pytest.mark.parametrize(
    "ranges",
    [[(0, 9)], [(0, 4), (4, 9)], [(0, 0), (0, 0), (0, 4), (4, 4), (4, 4), (4, 9), (9, 9), (9, 9)]],
    ids=["one", "two", "more workers than chunks"],
)
def test_the_ranges_are_put_together(ranges: list[tuple[int, int]]) -> None:
    assert assemble(3, 9, ["m"], parts(*ranges)).vectors["m"].tobytes() == WHOLE.tobytes()


@pytest.mark.parametrize("ranges", [[], [(0, 4)], [(4, 9)], [(0, 4), (4, 9), (4, 9)], [(0, 5), (4, 9)], [(0, 4), (5, 9)]])
def test_a_range_that_is_missing_or_stands_twice_is_our_fault(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(InternalError):
        assemble(3, 9, ["m"], parts(*ranges))
