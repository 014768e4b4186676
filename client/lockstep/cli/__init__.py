"""The command line: one grammar, results on stdout, talk on stderr, exit codes that mean something (docs/cli.md)."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """The `lockstep` command."""
    from lockstep.cli.app import run

    raise SystemExit(run())
