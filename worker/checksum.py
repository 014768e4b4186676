"""CRC-32C of a vector: how copies of what must be equal are compared, between nodes and over time."""

from __future__ import annotations

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from worker.limits import TRANSFER_BYTES


def crc32c(vector: NDArray[np.float32]) -> int:
    """The checksum of a contiguous vector's bytes."""
    crc, data = 0, vector.data.cast("B")
    for at in range(0, len(data), TRANSFER_BYTES):
        crc = google_crc32c.extend(crc, bytes(data[at : at + TRANSFER_BYTES]))
    return crc
