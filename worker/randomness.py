"""All randomness of a job: Philox keys and counters, their purposes, and the maps from raw words to numbers.

A stream is Philox with key [seed, purpose << 32 | layer] and counter [0, shard, time, 0]; NumPy promises its raw words
across versions. `time` is the step, the epoch for the order, and 0 for what is drawn once.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from lockstep.contract.arithmetic import validation_count
from worker.limits import MAX_ROWS

Words: TypeAlias = NDArray[np.uint64]
Floats: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]

# Words are taken in blocks of 64 KiB; a block of normal numbers is made of one block of words.
BLOCK_WORDS = 8192

_TWO_PI = np.float32(6.2831853071795864769)
_QUARTER = np.float32(0.25)
_MINUS_TWO = np.float32(-2)
_STEP_24 = np.float32(2**-24)
_ONE = np.float32(1)


class Purpose(IntEnum):
    """What a stream is drawn for. Numbers are never reused."""

    ORDER = 1
    SPLIT = 2
    INITIAL_WEIGHTS = 3
    DROPOUT = 4
    FINGERPRINT = 5
    GRADIENT_CHECK = 6


@final
class Stream:
    """The raw words of one purpose, layer, shard and time, in order."""

    def __init__(self, seed: int, purpose: Purpose, *, layer: int = 0, shard: int = 0, time: int = 0) -> None:
        # Arrays, since a tuple of large integers passes through float64.
        key = np.array([seed, int(purpose) << 32 | layer], np.uint64)
        counter = np.array([0, shard, time, 0], np.uint64)
        self._philox = np.random.Philox(key=key, counter=counter)

    def words(self, count: int) -> Words:
        """The next `count` words."""
        return self._philox.random_raw(count)


def uniform(stream: Stream, count: int) -> Floats:
    """`count` float32 in [0, 1): (w >> 40) * 2**-24 of one word each."""
    out = np.empty(count, np.float32)
    for first in range(0, count, BLOCK_WORDS):
        part = out[first : first + BLOCK_WORDS]
        _uniform(stream.words(len(part)), part)
    return out


def normal(stream: Stream, count: int) -> Floats:
    """`count` standard normal float32 by Box and Muller (1958), in blocks of 8,192.

    A block of n numbers takes 2h words, h = ceil(n / 2): u of the first h, v of the others, both uniform as above. With
    r = sqrt(-2 log(1 - u)), the first h numbers are r sin(2 pi v), the others r sin(2 pi (v + 1/4)); all in float32.
    """
    out = np.empty(count, np.float32)
    for first in range(0, count, BLOCK_WORDS):
        part = out[first : first + BLOCK_WORDS]
        half = -(-len(part) // 2)
        words = stream.words(2 * half)
        u, v = np.empty(half, np.float32), np.empty(half, np.float32)
        _uniform(words[:half], u)
        _uniform(words[half:], v)
        radius = np.sqrt(np.multiply(np.log(np.subtract(_ONE, u)), _MINUS_TWO))
        np.multiply(radius, np.sin(np.multiply(v, _TWO_PI)), out=part[:half])
        rest = len(part) - half
        shifted = np.sin(np.multiply(np.add(v, _QUARTER), _TWO_PI))
        np.multiply(radius[:rest], shifted[:rest], out=part[half:])
    return out


def _uniform(words: Words, out: Floats) -> None:
    # 24 bits are exact in float32, so neither the cast nor the product rounds.
    out[...] = np.right_shift(words, np.uint64(40))
    np.multiply(out, _STEP_24, out=out)


def epoch_order(seed: int, epoch: int, rows: int) -> Rows:
    """The order of `rows` training rows in `epoch` (0, 1, ...): the stable argsort of raw words. int64, (rows,)."""
    _check_rows(rows)
    return np.argsort(Stream(seed, Purpose.ORDER, time=epoch).words(rows), kind="stable")


def validation_split(seed: int, rows: int, fraction: float) -> tuple[Rows, Rows]:
    """(training rows, validation rows) of a dataset, both ascending int64.

    The first `validation_count` rows of the split's order validate.
    """
    _check_rows(rows)
    order = np.argsort(Stream(seed, Purpose.SPLIT).words(rows), kind="stable")
    count = validation_count(rows, fraction)
    return np.sort(order[count:]), np.sort(order[:count])


def _check_rows(rows: int) -> None:
    if not 0 <= rows <= MAX_ROWS:
        raise ValueError(f"rows: got {rows}; it must be at least 0 and at most {MAX_ROWS}")
