"""What all commands agree on: which server they speak to, the option --json, and the exit codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, final

import click

if TYPE_CHECKING:
    from lockstep.client import Client

DONE = 0
NOT_SUCCEEDED = 1
WRONG_REQUEST = 2
SERVICE_FAILED = 3
INTERRUPTED = 130

EXIT_CODES = """\b
Exit codes:
  0    done
  1    the job that was watched or waited for did not succeed, or not in time
  2    what was asked is wrong: usage, input, token, name or state
  3    the service cannot be reached, or failed
  130  Ctrl-C; a job that was watched goes on
"""

# A step, or the number of an event: what a uint64 of the API can hold.
NUMBER = click.IntRange(0, 2**64 - 1)

Command = TypeVar("Command", bound=Callable[..., Any])


@final
@dataclass(frozen=True)
class Target:
    """Which server the commands speak to."""

    server: str | None
    token_file: str | None

    def connect(self) -> Client:
        """The client; gRPC is loaded only here."""
        from lockstep.client import Client

        return Client(self.server, token_file=self.token_file)


@final
class Seconds(click.FloatRange):
    """A time above 0 that comes to an end."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Fails for NaN and infinity, which get through every comparison."""
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return seconds


def as_json(command: Command) -> Command:
    """The option --json, which every command has."""
    return click.option(
        "--json", "as_json", is_flag=True, help="One JSON object a line on stdout, with the field names of the API."
    )(command)
