"""The numbers of the arithmetic contract that every process must agree on (docs/determinism.md)."""

from __future__ import annotations

from fractions import Fraction

# Rises whenever the weights of a recorded job would change.
ARITHMETIC_VERSION = 1

# Most points of a curve.
CURVE_POINTS = 2000

# Rows of a block in evaluation and prediction.
EVALUATION_BLOCK_ROWS = 256


def default_shards(batch_size: int) -> int:
    """min(8, the largest power of two not above batch_size / 32), at least 1: it looks at the batch alone."""
    shards = 1
    while shards < 8 and shards * 2 <= batch_size // 32:
        shards *= 2
    return shards


# Fewest rows of a shard where a layer takes statistics over its rows, in a batch that has as many.
BATCH_STATISTICS_ROWS = 8


def filled_shards(rows: int, shards: int, least_rows: int = 1) -> int:
    """How many shards of a batch have rows: as many as can have `least_rows` each, and one at least."""
    return min(shards, max(1, rows // least_rows))


def shard_rows(rows: int, shards: int, least_rows: int = 1) -> list[tuple[int, int]]:
    """Cuts `rows` rows into `shards` contiguous ranges [first, end), the first `filled_shards` of which have rows.

    Of f such shards the first rows % f have one row more; the others are empty ranges.
    """
    filled = filled_shards(rows, shards, least_rows)
    small, larger = divmod(rows, filled)
    ranges, first = [], 0
    for shard in range(filled):
        end = first + small + (1 if shard < larger else 0)
        ranges.append((first, end))
        first = end
    return ranges + [(rows, rows)] * (shards - filled)


def validation_count(rows: int, fraction: float) -> int:
    """How many of `rows` rows validate: floor(rows * fraction + 1/2), exactly, with the double's own value."""
    doubled = 2 * rows * Fraction(fraction) + 1
    return doubled.numerator // (2 * doubled.denominator)


def point_interval(total: int) -> int:
    """Steps (or evaluations) between two points of a curve out of `total`: at most 2,000 points a job and name."""
    return max(1, -(-total // CURVE_POINTS))
