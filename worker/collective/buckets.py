"""Buckets: parts of the flat vector that are sent to other nodes as soon as the backward pass has completed them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from worker.nn.shapes import BLOCK_FLOATS

# A part [first, end) of the flat vector.
Range = tuple[int, int]

# The fewest floats of a bucket but the last: sending less at a time costs more calls than it gains.
_BUCKET_FLOATS = BLOCK_FLOATS


class Bucket(NamedTuple):
    """Ranges, ascending and apart, that are complete once the first `after` of a pass are."""

    after: int
    ranges: tuple[Range, ...]

    def within(self, first: int, end: int) -> list[Range]:
        """What of the bucket lies in [first, end)."""
        parts = [(max(a, first), min(b, end)) for a, b in self.ranges]
        return [(a, b) for a, b in parts if a < b]


def buckets(finished_ranges: Sequence[Range]) -> tuple[Bucket, ...]:
    """The buckets of a pass that completes these ranges one after the other."""
    made: list[Bucket] = []
    gathered: list[Range] = []
    for count, own in enumerate(finished_ranges, start=1):
        gathered.append(own)
        if sum(end - first for first, end in gathered) >= _BUCKET_FLOATS or count == len(finished_ranges):
            made.append(Bucket(count, _joined(gathered)))
            gathered = []
    return tuple(made)


def _joined(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """The same numbers in as few ranges as can be, ascending."""
    joined: list[Range] = []
    for first, end in sorted(ranges):
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((first, end))
    return tuple(joined)
