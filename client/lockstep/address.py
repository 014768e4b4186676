"""Where the server is, and the token for it: argument, environment, then a file per server in the user's state folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lockstep.contract.errors import UserError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7460

MAX_TOKEN_FILE_BYTES = 4096
TOKEN = re.compile(r"[!-~]{1,512}")

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@final
@dataclass(frozen=True)
class Address:
    """Host and port of a server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, so that no proxy stands between."""
        return self.host in LOOPBACK or self.host.startswith("127.")


def server_address(argument: str | None = None) -> Address:
    """The server: the argument, LOCKSTEP_SERVER, or 127.0.0.1:7460. A host alone means port 7460."""
    text = argument or os.environ.get("LOCKSTEP_SERVER") or f"{DEFAULT_HOST}:{DEFAULT_PORT}"
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?", text)
    port = int(match[3] or DEFAULT_PORT) if match else 0
    if match is None or not 1 <= port <= 65535:
        raise UserError.of("server", repr(text), "it must be HOST:PORT, as in 127.0.0.1:7460", "SERVER_ADDRESS")
    return Address(match[1] or match[2], port)


def token_path(host: str, port: int) -> Path:
    """The file with the user's token for a server: `lockstep-server up` writes it, mode 0600, and removes it."""
    import platformdirs  # ten milliseconds that only who asks pays

    name = DEFAULT_HOST if host in LOOPBACK else host.replace(":", "-")
    return platformdirs.user_state_path("lockstep") / "tokens" / f"{name}_{port}"


def find_token(address: Address, argument: str | None = None, token_file: str | os.PathLike[str] | None = None) -> str | None:
    """The token: the argument, the file given, LOCKSTEP_TOKEN_FILE's, or the user's file for the server; None where none is.

    Raises UserError for a file that was named and cannot be read, or that holds no token.
    """
    if argument is not None:
        return _valid(argument, "token")
    named = token_file or os.environ.get("LOCKSTEP_TOKEN_FILE")
    path = Path(named) if named else token_path(address.host, address.port)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TOKEN_FILE_BYTES)
    except OSError as error:
        if not named and isinstance(error, FileNotFoundError):
            return None
        raise UserError.of(str(path), "", f"the token file cannot be read: {error.strerror}", "TOKEN_FILE") from error
    # The first token counts: a server's file may hold several, and comments.
    lines = (line.strip() for line in content.decode("ascii", "replace").splitlines() if not line.startswith("#"))
    return _valid(next((line for line in lines if line), ""), str(path))


def _valid(token: str, place: str) -> str:
    if not TOKEN.fullmatch(token):
        # What stands there may be half a secret: it is not repeated.
        raise UserError.of(place, "", "it must hold a token of 1 to 512 visible ASCII characters", "TOKEN_FILE")
    return token
