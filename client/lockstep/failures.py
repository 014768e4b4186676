"""What can go wrong between client and server besides a UserError."""

from __future__ import annotations

from typing import final

from lockstep.contract.errors import LockstepError


@final
class ServerUnavailable(LockstepError):
    """The server cannot be reached, does not answer in time, or broke off."""

    def __init__(self, server: str, what: str) -> None:
        self.server = server
        self.what = what
        super().__init__(server, what)

    def __str__(self) -> str:
        return f"{self.server}: {self.what}"


@final
class WaitTimeout(LockstepError):
    """What was waited for did not come in time; the job is as it was."""

    def __init__(self, job: str, what: str) -> None:
        self.job = job
        self.what = what
        super().__init__(job, what)

    def __str__(self) -> str:
        return f"{self.job}: {self.what}"
