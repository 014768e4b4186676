"""Time as the store keeps it: whole microseconds since 1970; the clock is passed in, so that tests can jump."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

Clock = Callable[[], int]
SECOND: Final = 1_000_000


def wall_clock() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def timestamp(micros: int) -> Timestamp:
    """The message of a time."""
    return Timestamp(seconds=micros // SECOND, nanos=micros % SECOND * 1000)


def for_people(micros: int) -> str:
    """ "2026-11-25 09:30:00 UTC"."""
    return datetime.fromtimestamp(micros / SECOND, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
