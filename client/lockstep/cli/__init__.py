"""The command line: one grammar, results on stdout, talk on stderr, exit codes that mean something (docs/cli.md)."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """The `lockstep` command."""
    # Where a stream was closed (`>&-`), what is said goes nowhere, and no socket of ours takes its place.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open to the end of the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - likewise
    try:
        from lockstep.cli.app import run

        code = run()
    except KeyboardInterrupt:  # while modules are still being loaded
        code = 130
    raise SystemExit(code)
