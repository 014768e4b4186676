"""`lockstep-server config`: every setting in force, and where it comes from."""

from __future__ import annotations

import click
from click.core import ParameterSource

from services.commands.agent import agent
from services.commands.api import api
from services.commands.settings import reports_errors
from services.commands.up import up
from services.commands.worker import worker

COMMANDS: dict[str, click.Command] = {"up": up, "api": api, "agent": agent, "worker": worker}


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", type=click.Choice(list(COMMANDS)), default="up")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@reports_errors
def config(command: str, arguments: tuple[str, ...]) -> None:
    """Prints the settings of a command, one a line: flag, value, source.

    Example: LOCKSTEP_SLOTS=4 lockstep-server config up --port 8000
    """
    chosen = COMMANDS[command]
    context = chosen.make_context(command, list(arguments), resilient_parsing=True)
    for parameter in chosen.params:
        if not isinstance(parameter, click.Option) or parameter.name is None:
            continue
        value, source = context.params.get(parameter.name), context.get_parameter_source(parameter.name)
        if value is None and source is not ParameterSource.COMMANDLINE:
            value = parameter.get_default(context, call=True)
        click.echo(f"{parameter.opts[0]}\t{_shown(value)}\t{_source(parameter, source)}")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return "" if value is None else str(value() if callable(value) else value)


def _source(parameter: click.Option, source: ParameterSource | None) -> str:
    if source is ParameterSource.COMMANDLINE:
        return "flag"
    if source is ParameterSource.ENVIRONMENT:
        return f"environment {parameter.envvar}"
    return "default" if not isinstance(parameter.envvar, str) else f"default ({parameter.envvar} is not set)"
