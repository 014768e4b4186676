"""The steps of a living worker, counted from outside and without its help: by the barrier's counter in its shared memory."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import final

from worker.collective.shared_memory import Segment

BARRIERS_A_STEP = 2  # gradients are ready, parameters are ready: where the update is one pass
POLL_S = 0.001


@final
class ObservedSteps:
    """The steps that a process has taken in its present group; `inode` tells that group's segment from those of others."""

    def __init__(self, segment: Segment, inode: int) -> None:
        self._segment, self.inode = segment, inode

    @classmethod
    def of(cls, pid: int) -> ObservedSteps | None:
        """Those of a worker's process; None while it is in no group."""
        folder = f"/proc/{pid}/fd"
        with suppress(OSError):  # a descriptor, or the process, may go while we look
            for name in os.listdir(folder):
                if os.readlink(f"{folder}/{name}").startswith("/memfd:lockstep"):
                    return cls._open(f"{folder}/{name}")
        return None

    @classmethod
    def _open(cls, path: str) -> ObservedSteps | None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            return cls(Segment(fd, status.st_size), status.st_ino) if status.st_size else None  # None: it is being made
        finally:
            os.close(fd)

    @property
    def count(self) -> int:
        """Steps whose parameters are ready."""
        return int(self._segment.arrived[0]) // BARRIERS_A_STEP


def first_step_of_next_group(pid: int, before: ObservedSteps, timeout_s: float) -> float:
    """The time (monotonic) at which a process had taken the first step of another group than `before`. Raises TimeoutError."""
    end, steps = time.monotonic() + timeout_s, before
    while steps.inode == before.inode or steps.count < 1:
        now = time.monotonic()
        if now > end:
            raise TimeoutError(f"worker process {pid} took no step in another group within {timeout_s:g} s")
        time.sleep(POLL_S)
        if steps.inode == before.inode:
            steps = ObservedSteps.of(pid) or before
    return time.monotonic()
