"""The group of all commands, and the one place where exceptions become messages and exit codes."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from typing import Any, final

import click

from lockstep import __version__
from lockstep.cli.conventions import (
    DONE,
    EXIT_CODES,
    INTERRUPTED,
    NOT_SUCCEEDED,
    SERVICE_FAILED,
    WRONG_REQUEST,
    Target,
)
from lockstep.cli.output import abandon_stdout, talk
from lockstep.contract.errors import InternalError, UserError
from lockstep.failures import ServerUnavailable, WaitTimeout


@final
class Commands(click.Group):
    """All commands. A reader of the results that leaves (`| head`) is no failure."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; click itself would end it with 1, which says that a job did not succeed."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            abandon_stdout()
            return DONE


@click.group(
    cls=Commands,
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
    except Exception as error:  # the last resort: nobody is shown a trace unasked
        if os.environ.get("LOCKSTEP_TRACE") == "1":
            traceback.print_exc()
        talk(f"error: {type(error).__name__}: {error} (please report it, with the output under LOCKSTEP_TRACE=1)")
        return SERVICE_FAILED
