"""The machine that is measured, and what all benchmarks have in common on it: the peers' Python and the kernels of OpenBLAS."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from datetime import date
from pathlib import Path

from benchmarks.turns import ROOT

# What else steers OpenBLAS alone would bind our side and leave PyTorch's libraries free.
KERNEL_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def add_kernel(parser: argparse.ArgumentParser) -> None:
    """The option --kernel."""
    parser.add_argument("--kernel", help="of OpenBLAS, such as Haswell; unless given, the best that this processor has")


def add_torch(parser: argparse.ArgumentParser) -> None:
    """The option --torch-python."""
    parser.add_argument("--torch-python", default=str(ROOT / ".venv-torch/bin/python"), help="of the environment with PyTorch")


def check_torch(parser: argparse.ArgumentParser, python: str) -> None:
    """Ends the program where the peers' Python is not there."""
    if not Path(python).exists():
        parser.error(f"--torch-python: {python} is not there; benchmarks/README.md says how to make it")


def add_turns(parser: argparse.ArgumentParser, seconds: float, least: str, rounds: int) -> None:
    """The options --seconds and --rounds; `least` says how short a turn is at the least."""
    parser.add_argument("--seconds", type=float, default=seconds, help=f"of one turn{least} (default {seconds:g})")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each contestant (default {rounds})")


def check_turns(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program where there would be no turns."""
    if options.rounds < 1 or options.seconds <= 0:
        parser.error(f"--rounds must be at least 1 and --seconds above 0; got {options.rounds} and {options.seconds:g}")


def choose_kernel(kernel: str | None) -> None:
    """Sets the environment that all sides inherit."""
    for name in KERNEL_VARIABLES:
        os.environ.pop(name, None)
    if kernel:
        os.environ[KERNEL_VARIABLES[0]] = kernel


def end_on_sigterm() -> None:
    """SIGTERM, which `timeout` sends, ends the program as an exception does, so that it stops what it has started."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def machine() -> str:
    """The date, the processor's name and its cores."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{date.today()}, {names[0] if names else 'unknown processor'}, {os.cpu_count()} cores"
