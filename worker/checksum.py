"""Checksums: how copies of what must be equal are compared, between nodes, over links and over time."""

from __future__ import annotations

from collections.abc import Iterable

import google_crc32c
import numpy as np
from numpy.typing import NDArray

# The library reads bytes alone, so that each piece is copied first: it stays in the first-level cache.
_PIECE_BYTES = 1 << 14


def crc32c(vector: NDArray[np.float32]) -> int:
    """The checksum of a contiguous vector's bytes."""
    return crc32c_of(vector.data.cast("B"))


def crc32c_of(data: memoryview) -> int:
    """The checksum of bytes."""
    crc = 0
    for at in range(0, len(data), _PIECE_BYTES):
        crc = google_crc32c.extend(crc, bytes(data[at : at + _PIECE_BYTES]))
    return crc


def word_sum(parts: Iterable[memoryview]) -> int:
    """The sum of the 32-bit words of several parts, modulo 2^32: of frames in a step, where it costs a fifth of a CRC-32C.

    A flipped bit changes it, and so does all else but what changes two words by opposite amounts. Parts are whole words.
    """
    total = 0
    for part in parts:
        total += int(np.add.reduce(np.frombuffer(part, np.uint32), dtype=np.uint32))
    return total & 0xFFFF_FFFF
