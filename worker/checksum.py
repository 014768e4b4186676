"""CRC-32C: how copies of what must be equal are compared, between nodes, over links and over time."""

from __future__ import annotations

from collections.abc import Iterable

import google_crc32c
import numpy as np
from numpy.typing import NDArray

# The library reads bytes alone, so that each piece is copied first: it stays in the first-level cache.
PIECE_BYTES = 1 << 14


def crc32c(vector: NDArray[np.float32]) -> int:
    """The checksum of a contiguous vector's bytes."""
    return crc32c_of((vector.data.cast("B"),))


def crc32c_of(parts: Iterable[memoryview]) -> int:
    """The checksum of bytes in several parts, one after the other."""
    crc = 0
    for part in parts:
        for at in range(0, len(part), PIECE_BYTES):
            crc = google_crc32c.extend(crc, bytes(part[at : at + PIECE_BYTES]))
    return crc
