"""What processes may leave behind on this machine: themselves, and shared memory that has a name."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def process_folders() -> Iterator[tuple[int, Path]]:
    """All processes of the machine with their folders, any of which may go while one looks."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name), Path("/proc") / name


def gone(pid: int) -> bool:
    """Whether a process is not there, or is only waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def segments() -> set[str]:
    """The names of shared memory, whoever's."""
    return set(os.listdir(SHARED_MEMORY))


def abandoned_segments(before: Collection[str]) -> set[str]:
    """The names that came since `before` and that no process has mapped: what other programs use now does not count."""
    new = {}
    for name in segments() - set(before):
        with suppress(OSError):
            status = (SHARED_MEMORY / name).stat()
            if stat.S_ISREG(status.st_mode):  # folders are other programs'
                # As it stands in maps, where the name is that of the first link, which a semaphore's maker removes.
                new[name] = f" {os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x} {status.st_ino} "
    for _, folder in process_folders() if new else ():
        with suppress(OSError):
            maps = (folder / "maps").read_text()
            new = {name: mapped for name, mapped in new.items() if mapped not in maps}
    return {name for name in new if (SHARED_MEMORY / name).exists()}
