"""The group of all commands, and the one place where exceptions become messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, final

import click

from lockstep import __version__
from lockstep.cli.output import talk
from lockstep.contract.errors import InternalError, UserError
from lockstep.failures import ServerUnavailable, WaitTimeout

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


def as_json(command: Command) -> Command:
    """The option --json, which every command has."""
    return click.option(
        "--json", "as_json", is_flag=True, help="One JSON object a line on stdout, with the field names of the API."
    )(command)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
    short_help="Distributed training as a service.",
)
@click.option("--server", metavar="HOST:PORT", help="The server; else LOCKSTEP_SERVER, else 127.0.0.1:7460.")
@click.option(
    "--token-file", metavar="FILE", help="The token; else LOCKSTEP_TOKEN_FILE, else the file that `lockstep-server up` wrote."
)
@click.version_option(__version__, "--version", message="%(version)s")
@click.pass_context
def group(context: click.Context, server: str | None, token_file: str | None) -> None:
    """Submit training jobs as data, watch them, take the models home.

    \b
    lockstep dataset push digits examples/digits.npz
    lockstep submit --watch examples/digits.yaml
    lockstep model pull digits-mlp-7f3a
    """
    context.obj = Target(server, token_file)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    from lockstep.cli import commands

    commands.register(group)
    try:
        code = group.main(args=arguments, prog_name="lockstep", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else DONE
    except click.ClickException as error:
        error.show()
        return WRONG_REQUEST
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except WaitTimeout as error:
        talk(f"error: {error}")
        return NOT_SUCCEEDED
    except UserError as error:
        for violation in error.violations:
            talk(f"error: {violation}")
        return WRONG_REQUEST
    except (ServerUnavailable, InternalError) as error:
        talk(f"error: {error}")
        return SERVICE_FAILED
    except BrokenPipeError:
        # The reader of the results left; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:  # the last resort: nobody is shown a trace unasked
        if os.environ.get("LOCKSTEP_TRACE") == "1":
            traceback.print_exc()
        talk(f"error: {type(error).__name__}: {error} (please report it, with the output under LOCKSTEP_TRACE=1)")
        return SERVICE_FAILED
