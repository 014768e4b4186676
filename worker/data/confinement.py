"""The walls around the process that reads an upload: memory, time, file sizes, open files, network."""

from __future__ import annotations

import ctypes
import resource
import signal
from types import FrameType

from lockstep.contract.errors import UserError
from worker.data.limits import MAX_ADDRESS_BYTES, MAX_COLUMN_BYTES, MAX_CPU_SECONDS, MAX_MEMORY_BYTES, MAX_OPEN_FILES

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS = 38


def confine() -> None:
    """Sets the limits of this process, for good; the network goes away where the kernel lets it.

    Where it does not (in a container without that right), the process still opens no socket: nothing it runs has a reason to.
    """
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_AS, MAX_ADDRESS_BYTES)
    _lower(resource.RLIMIT_DATA, MAX_MEMORY_BYTES)
    _lower(resource.RLIMIT_FSIZE, MAX_COLUMN_BYTES)
    _lower(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    # The soft limit is told as a sentence; 10 s later the kernel ends the process.
    _lower(resource.RLIMIT_CPU, MAX_CPU_SECONDS, MAX_CPU_SECONDS + 10)
    signal.signal(signal.SIGXCPU, _out_of_time)
    leave_network()


def leave_network() -> bool:
    """Moves this process into an empty network namespace; says whether it could."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.unshare(CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0)


def _lower(limit: int, soft: int, hard: int | None = None) -> None:
    """Sets a limit, never above the one that is in force."""
    _, ceiling = resource.getrlimit(limit)
    wanted = soft if hard is None else hard
    bound = wanted if ceiling == resource.RLIM_INFINITY else min(wanted, ceiling)
    resource.setrlimit(limit, (min(soft, bound), bound))


def _out_of_time(signum: int, frame: FrameType | None) -> None:
    raise UserError.of("file", "", f"reading it took more than {MAX_CPU_SECONDS} s: split or simplify it", "TOO_LARGE")
