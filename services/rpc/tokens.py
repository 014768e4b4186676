"""Who may call: tokens are known by their SHA-256 digests alone, and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

from lockstep.contract.errors import UserError

TOKEN_BYTES = 32
FILE_BYTES = 1 << 20


def digest_of(token: str) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    """A random token of 256 bits."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def read_token_file(path: Path, flag: str) -> list[str]:
    """The tokens of a file, one a line; lines that begin with # are passed over. Raises UserError."""
    try:
        with path.open("rb") as file:
            lines = file.read(FILE_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError.of(flag, path, f"the file of tokens cannot be read ({error})", "TOKEN_FILE_UNREADABLE") from None
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not tokens or any(len(token) < 16 for token in tokens):
        raise UserError.of(flag, path, "it must hold tokens of at least 16 characters, one a line", "TOKEN_FILE_UNREADABLE")
    return tokens


def read_register(path: Path) -> list[dict[str, Any]]:
    """The tokens that `lockstep-server token` made: name, sha256, create_time. Raises UserError for a damaged file."""
    try:
        register = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError.of(str(path), "", f"the register of tokens cannot be read ({error})", "TOKEN_FILE_UNREADABLE") from None
    return list(register["tokens"])


@final
class Tokens:
    """The digests that are good now: fixed ones, and those of the register, which is read again whenever it changes."""

    def __init__(self, fixed: Iterable[str], register: Path | None = None) -> None:
        self._fixed = [digest_of(token) for token in fixed]
        self._register = register
        self._registered: list[str] = []
        self._stamp: tuple[int, int] = (0, 0)
        self._refresh()

    def __len__(self) -> int:
        return len(self._fixed) + len(self._registered)

    def check(self, authorization: str) -> None:
        """Looks at the value of the `authorization` metadata. Raises UserError."""
        scheme, _, token = authorization.partition(" ")
        if not authorization:
            remedy = (
                "send `authorization: Bearer TOKEN`; the client reads it from LOCKSTEP_TOKEN_FILE or the user's state folder"
            )
            raise UserError.of("token", "", f"there is none; {remedy}", "TOKEN_MISSING")
        self._refresh()
        digest = digest_of(token.strip())
        good = [hmac.compare_digest(digest, known) for known in self._fixed + self._registered]
        if scheme.lower() != "bearer" or not any(good):
            remedy = "this server does not know it; ask its operator for one (`lockstep-server token create`)"
            raise UserError.of("token", "", remedy, "TOKEN_WRONG")

    def _refresh(self) -> None:
        if self._register is None:
            return
        try:
            stat = self._register.stat()
        except FileNotFoundError:
            self._registered, self._stamp = [], (0, 0)
            return
        if (stat.st_mtime_ns, stat.st_ino) != self._stamp:
            self._registered = [entry["sha256"] for entry in read_register(self._register)]
            self._stamp = (stat.st_mtime_ns, stat.st_ino)
