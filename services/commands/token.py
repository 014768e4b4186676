"""`lockstep-server token`: makes, lists and revokes users' tokens. Single writer of DIR/store/tokens.json; servers read it."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from lockstep.contract.errors import UserError
from services.cluster import write_secret
from services.commands.settings import data_setting, reports_errors, speak
from services.rpc.tokens import digest_of, new_token, read_register

MOST = 1000


@click.group()
def token() -> None:
    """Makes, lists and revokes tokens of users; running servers notice at once."""


@token.command()
@data_setting
@click.argument("name")
@reports_errors
def create(data: Path, name: str) -> None:
    """Makes a token for NAME, a word for people, and prints it, this once: only its hash is kept."""
    with _register(data) as tokens:
        if any(entry["name"] == name for entry in tokens):
            raise UserError.of(
                "name", name, "there is a token of that name; revoke it first, or choose another", "TOKEN_EXISTS"
            )
        if len(tokens) >= MOST:
            raise UserError.of("name", name, f"there are {MOST} tokens; revoke some", "TOO_MANY_TOKENS")
        made = new_token()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        tokens.append({"name": name, "sha256": digest_of(made), "create_time": now})
    click.echo(made)
    speak("put it into a file of mode 0600 and name that in LOCKSTEP_TOKEN_FILE")


@token.command("list")
@data_setting
@reports_errors
def list_tokens(data: Path) -> None:
    """Lists the tokens: name and time, never the token."""
    tokens = read_register(_path(data))
    for entry in tokens:
        click.echo(f"{entry['name']}\t{entry['create_time']}")
    if not tokens:
        speak("there are no tokens; `lockstep-server token create NAME` makes one")


@token.command()
@data_setting
@click.argument("name")
@reports_errors
def revoke(data: Path, name: str) -> None:
    """Takes a token back."""
    with _register(data) as tokens:
        left = [entry for entry in tokens if entry["name"] != name]
        if len(left) == len(tokens):
            raise UserError.of(
                "name", name, "there is no token of that name; `lockstep-server token list` lists them", "TOKEN_UNKNOWN"
            )
        tokens[:] = left
    click.echo(name)


def _path(data: Path) -> Path:
    return data / "store" / "tokens.json"


@contextmanager
def _register(data: Path) -> Iterator[list[dict[str, Any]]]:
    """The register, to be changed in place; written when all went well. One writer at a time."""
    path = _path(data)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path.with_name("tokens.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        tokens = read_register(path)
        yield tokens
        write_secret(path, json.dumps({"tokens": tokens}, indent=2) + "\n")
    finally:
        os.close(fd)
