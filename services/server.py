"""`lockstep-server`: the operators' command."""

from __future__ import annotations

import importlib
from typing import final

import click

from services import VERSION

COMMANDS = {
    "up": "Runs the whole service on this machine.",
    "api": "Runs the API server.",
    "agent": "Runs the Ray head and the agent.",
    "worker": "Runs a node with worker slots.",
    "token": "Makes, lists and revokes tokens.",
    "health": "Says whether a server or node does its work.",
    "config": "Prints the settings in force and where they come from.",
}


@final
class Commands(click.Group):
    """Loads a command's module only when it is asked for: `health` must be cheap."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"services.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="lockstep-server")
def main() -> None:
    """Runs Lockstep. Start with: lockstep-server up"""


if __name__ == "__main__":
    main()
