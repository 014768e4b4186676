"""Settings: a flag, over an environment variable LOCKSTEP_*, over a default; and how commands report errors."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import platformdirs
import structlog

from lockstep.contract.errors import LockstepError, UserError
from services.cluster import write_secret
from services.rpc.tokens import new_token, read_token_file

F = TypeVar("F", bound=Callable[..., Any])

GRPC_PORT: Final = 7460
HTTP_PORT: Final = 7461
AGENT_PORT: Final = 7462
RAY_PORT: Final = 6379

# Exit statuses: 1 something failed, 2 what was asked cannot be done.
FAILED: Final = 1
REFUSED: Final = 2


def setting(*flags: str, env: str, **options: Any) -> Callable[[F], F]:
    """A click option that reads LOCKSTEP_<env> and shows its default."""
    options.setdefault("show_default", True)
    return click.option(*flags, envvar=f"LOCKSTEP_{env}", show_envvar=True, **options)


def default_data() -> Path:
    """Where data lie unless told otherwise: ~/.local/share/lockstep."""
    return platformdirs.user_data_path("lockstep")


def make_data_folder(path: Path) -> None:
    """Makes the data folder where there is none. Raises UserError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        remedy = f"it cannot be made a folder ({error.strerror}); choose another"
        raise UserError.of("--data", path, remedy, "DATA_FOLDER") from None


def kept_token(data: Path) -> str:
    """The data folder's own token for clients: who watched before a restart is known after it."""
    path = data / "store" / "client_token"
    if not path.exists():
        write_secret(path, new_token())
    return read_token_file(path, "--data")[0]


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


data_setting: Final = setting(
    "--data",
    env="DATA",
    type=click.Path(path_type=Path),
    default=default_data,
    show_default="~/.local/share/lockstep",
    help="The data folder.",
)
slots_setting: Final = setting(
    "--slots",
    env="SLOTS",
    type=click.IntRange(1, 1024),
    default=usable_cores,
    show_default="the usable cores",
    help="Worker slots.",
)


def speak(text: str) -> None:
    """A line for people, on stderr."""
    click.echo(text, err=True)


def configure_log() -> None:
    """JSON lines on stderr; readable ones on a terminal."""
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def reports_errors(command: F) -> F:
    """Errors that are ours to explain end the command with a sentence and an exit status, not with a trace."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except LockstepError as error:
            speak(f"lockstep-server: {error}")
            sys.exit(REFUSED)

    return run  # type: ignore[return-value]  # of the same signature, which wraps() does not say


def run_until_signalled(main: Callable[[asyncio.Event], Coroutine[Any, Any, int]]) -> int:
    """Runs a coroutine function that is given an event which SIGINT and SIGTERM set."""

    async def body() -> int:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        return await main(stop)

    return asyncio.run(body())


async def first_of(*events: asyncio.Event) -> None:
    """Waits until one of the events is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
