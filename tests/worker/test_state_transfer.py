"""A range of a vector that was damaged on its way between nodes is not taken."""

from __future__ import annotations

import socket
import struct
import threading

import google_crc32c
import numpy as np
import pytest

from worker.collective.handshake import COORDINATOR
from worker.collective.links import Message
from worker.collective.tcp import CHECKSUM, HEADER, MAGIC, header
from worker.state_transfer import serve_state

RANGE = struct.pack("!64sQQ", b"parameters", 0, 8)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_damaged_range_is_refused(damaged: bool) -> None:
    here, there = socket.socketpair()
    target = np.zeros(8, np.float32)
    data = bytearray(np.arange(8, dtype=np.float32).tobytes())
    checksum = CHECKSUM.pack(google_crc32c.value(bytes(data)))
    data[5] ^= damaged

    def serve() -> None:
        with there:
            serve_state(there, 3, lambda *_: None, lambda step, name, first, end: target)

    worker = threading.Thread(target=serve)
    worker.start()
    with here:
        here.settimeout(10)
        here.sendall(header(Message.STATE_GIVEN, COORDINATOR, 7, len(RANGE)) + RANGE + data + checksum)
        answer = here.recv(HEADER.size)
    worker.join(10)
    assert answer == (b"" if damaged else HEADER.pack(MAGIC, Message.STATE, 3, 7, 0))
