"""Messages as frames: length and CRC-32, then the bytes. The spool and every pipe of the coordinator use it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from coordinator import limits

_HEADER = struct.Struct("<II")
HEADER_BYTES = _HEADER.size


class FrameError(Exception):
    """The bytes are no frame: too long, or the CRC-32 differs."""


def pack(payload: bytes) -> bytes:
    """The frame of a message; raises FrameError when it is longer than a frame may be."""
    if len(payload) > limits.FRAME_BYTES:
        raise FrameError(f"a message of {len(payload)} bytes; a frame holds at most {limits.FRAME_BYTES}")
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def unpack(buffer: bytes | bytearray | memoryview, offset: int = 0) -> tuple[bytes, int] | None:
    """The message at `offset` and where the next begins, or None while it is not all there; raises FrameError."""
    if len(buffer) - offset < HEADER_BYTES:
        return None
    length, crc = _HEADER.unpack_from(buffer, offset)
    if length > limits.FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes; at most {limits.FRAME_BYTES} are allowed")
    end = offset + HEADER_BYTES + length
    if len(buffer) < end:
        return None
    payload = bytes(memoryview(buffer)[offset + HEADER_BYTES : end])
    if zlib.crc32(payload) != crc:
        raise FrameError(f"the CRC-32 of a frame of {length} bytes differs")
    return payload, end


class Frames:
    """Collects bytes as they arrive and hands out whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that `data` completes; raises FrameError."""
        self._buffer += data
        offset = 0
        try:
            while (found := unpack(self._buffer, offset)) is not None:
                payload, offset = found
                yield payload
        finally:
            del self._buffer[:offset]
