"""Page tokens: where the next page begins, bound to the filter and the order that began the list."""

from __future__ import annotations

import base64
import hashlib
import json

from lockstep.contract.errors import UserError
from services import limits


def page_size(asked: int) -> int:
    """0 means the default; too much is cut. Raises UserError for a negative size."""
    if asked < 0:
        raise UserError.of("page_size", asked, "it must be at least 0", "FIELD_OUT_OF_RANGE")
    return min(asked or limits.PAGE_SIZE, limits.PAGE_SIZE_MOST)


def encode(last: list[str | int], *arguments: str) -> str:
    """A token behind `last`, good for the same arguments alone."""
    text = json.dumps([_digest(arguments), *last], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(token: str, kinds: tuple[type, ...], *arguments: str) -> list[str | int] | None:
    """What `encode` was given; None for no token. Raises UserError for a token that is not ours or has other arguments."""
    if not token:
        return None
    try:
        padded = token + "=" * (-len(token) % 4)
        digest, *last = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError):
        raise _refuse(token, "it must be the next_page_token of the answer before") from None
    if [type(item) for item in last] != list(kinds) or not all(not isinstance(n, int) or abs(n) < 1 << 62 for n in last):
        raise _refuse(token, "it must be the next_page_token of the answer before")
    if digest != _digest(arguments):
        raise _refuse(token, "filter and order_by must be as in the request that gave it")
    return list(last)


def _digest(arguments: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:16]


def _refuse(token: str, remedy: str) -> UserError:
    return UserError.of("page_token", token[:64], remedy, "INVALID_PAGE_TOKEN")
