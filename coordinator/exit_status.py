"""What a process's end means: an exit status read as a cause and a clause for people."""

from __future__ import annotations

import enum
import signal
from pathlib import Path

_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS}


class Cause(enum.Enum):
    """Why a process is not there any more, or does not answer."""

    OUT_OF_MEMORY = "out of memory"
    KILLED = "killed"
    CRASHED = "crashed"
    EXITED = "exited"
    NODE_GONE = "node gone"
    UNREACHABLE = "unreachable"
    LATE = "late"

    @property
    def outside(self) -> bool:
        """Whether it says nothing about what the process did."""
        return self in (Cause.KILLED, Cause.NODE_GONE, Cause.UNREACHABLE)


def out_of_memory_kills() -> int:
    """How many processes the kernel of this machine has killed for memory since it started; 0 where it does not say."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        return 0
    return 0


def interpret(returncode: int, out_of_memory: bool = False) -> tuple[Cause, str]:
    """Reads a status as `subprocess` gives it (minus the signal, or the exit code).

    `out_of_memory` says that the kernel killed a process for memory meanwhile.
    """
    if returncode >= 0:
        return Cause.EXITED, f"ended by itself with exit code {returncode}"
    number = -returncode
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGKILL and out_of_memory:
        return Cause.OUT_OF_MEMORY, "was killed by the kernel because memory ran out (SIGKILL)"
    if number == signal.SIGBUS:
        return Cause.OUT_OF_MEMORY, "crashed on a mapped page that could not be had (SIGBUS): shared memory or disk is full"
    if number in _CRASHES:
        return Cause.CRASHED, f"crashed ({name})"
    return Cause.KILLED, f"was killed from outside ({name})"
