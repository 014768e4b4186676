"""The disk of a simulation: real files in a folder of their own; each call that changes something is an act, and may fail.

What was written survives the death of a process, so that an fsync is only counted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

from tests.faults.disk_calls import replaced
from tests.faults.simulation.clock import Clock
from tests.faults.simulation.faults import Faults
from tests.faults.simulation.plan import Kind

_NEED_SPACE = ("mkdir", "open", "posix_fallocate", "write")


@final
class Disk:
    """`full_until`: nothing fits before that time; `tight_until`: no checkpoint does."""

    def __init__(self, faults: Faults, clock: Clock) -> None:
        self._faults, self._clock = faults, clock
        self.full_until = self.tight_until = 0.0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The calls of this process to the disk pass through here."""
        with replaced(self._watched):
            yield

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return function(*arguments, **named)
            self._faults.act(name)
            self._look(name)
            return None if name == "fsync" else function(*arguments, **named)

        return call

    def _look(self, name: str) -> None:
        for fault in self._faults.disk():
            if fault.kind == Kind.BROKEN:
                self._faults.strike(fault, f"of {name}")
                raise OSError(errno.EIO, "Input/output error")
            self._faults.strike(fault, f"from a call of {name} on", fault.seconds)
            until = self._clock.now + fault.seconds
            if fault.kind == Kind.FULL:
                self.full_until = until
            self.tight_until = max(self.tight_until, until)
        full = name in _NEED_SPACE and self.full_until > self._clock.now
        if full or (name == "posix_fallocate" and self.tight_until > self._clock.now):
            raise OSError(errno.ENOSPC, "No space left on device")
