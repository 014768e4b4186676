"""What the client's tests share: a fake server, a client of it, and an environment of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.cli.app import run
from lockstep.client import Client
from tests.client.commands import Done, Lockstep
from tests.client.fake_server import TOKEN, FakeServer
from tests.client.specs import DIGITS


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the user's reaches a test, and nothing of a test the user."""
    for name in ("LOCKSTEP_SERVER", "LOCKSTEP_TOKEN_FILE", "LOCKSTEP_TRACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    running = FakeServer()
    yield running
    running.stop()


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.address, TOKEN, deadline_s=10) as connected:
        yield connected


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "digits.yaml"
    path.write_text(DIGITS)
    return path


@pytest.fixture
def lockstep(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Lockstep:
    """Runs a command line against the fake server."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    monkeypatch.setenv("LOCKSTEP_SERVER", server.address)
    monkeypatch.setenv("LOCKSTEP_TOKEN_FILE", str(token))
    monkeypatch.chdir(tmp_path)

    def lockstep(*arguments: str) -> Done:
        code = run(arguments)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return lockstep
