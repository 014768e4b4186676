"""How much memory this process may use, and how much of it is free: the machine's, or less where a control group says so."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# (limit, usage, statistics) of control groups, version 2 and version 1.
_GROUPS = tuple(
    tuple(Path("/sys/fs/cgroup") / name for name in names)
    for names in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    )
)


def usable_memory_bytes() -> int:
    """The smaller of the machine's memory and the control group's limit."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(limit for limit, _ in _groups())])


def free_memory_bytes() -> int:
    """What can still be had: the machine's available memory, or what the control group's limit leaves."""
    left = [limit - used for limit, used in _groups()]
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            left.append(1024 * int(line.split()[1]))
    return max(0, min(left, default=0))


def check_free(size_bytes: int, what: str) -> None:
    """Raises OSError (ENOMEM) unless `size_bytes` are free.

    To be called before shared memory is reserved: a reservation that cannot be met makes the kernel kill processes, and not
    always the one that asked.
    """
    free = free_memory_bytes()
    if size_bytes > free:
        raise OSError(errno.ENOMEM, f"{what} needs {size_bytes} bytes; {free} bytes are free")


def _groups() -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot simply be dropped) of each control group that has a limit."""
    found = []
    for limit, usage, statistics in _GROUPS:
        try:
            text = limit.read_text(encoding="ascii").strip()
            used = int(usage.read_text(encoding="ascii"))
            lines = dict(line.split(maxsplit=1) for line in statistics.read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):
            continue  # another version of control groups, or none
        if text.isdigit():
            cache = int(lines.get("total_inactive_file", lines.get("inactive_file", "0")))
            found.append((int(text), used - cache))
    return found
