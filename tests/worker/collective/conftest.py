"""What several tests of the exchange share: two ends of a connection over loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The dialer's end and the other."""
    server = socket.create_server(("127.0.0.1", 0))
    dialer = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    server.close()
    yield dialer, accepted
    dialer.close()
    accepted.close()
