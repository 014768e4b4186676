"""The client where the other end is not what it should be: a proxy for a server, a pipe for a file."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import pytest

from lockstep.address import Address
from lockstep.client import Client
from lockstep.connection import Connection
from lockstep.contract.errors import UserError
from lockstep.failures import ServerUnavailable
from tests.client.fake_server import FakeServer


def test_an_answer_of_http_is_nobodys_service() -> None:
    """A proxy or a web server: gRPC makes UNIMPLEMENTED of a 404, which would read as if the request were wrong."""

    class Refusal(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNIMPLEMENTED

        def details(self) -> str:
            return "Received http2 header with status: 404"

        def trailing_metadata(self) -> tuple[()]:
            return ()

    with pytest.raises(ServerUnavailable, match="what answers there is no Lockstep server"):
        Connection(Address("127.0.0.1", 1), None).fail(Refusal())


def test_a_pipe_cannot_be_uploaded(client: Client, server: FakeServer, tmp_path: Path) -> None:
    """Opening one would wait for a writer for ever."""
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(UserError, match="it is not a file"):
        client.push_dataset(tmp_path / "a.npz", "a")
    assert server.requests == []
