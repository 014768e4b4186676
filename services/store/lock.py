"""The lock of a data folder: one server at a time, named to the one that comes second."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from lockstep.contract.errors import UserError
from services.processes.owners import command_of


class FolderLock:
    """Holds DIR/store/lock until close; its text names the owner. The kernel lets it go when the process ends."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._fd, 4096, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(self._fd)
            raise UserError.of(
                str(path.parent.parent),
                "",
                f"the data folder is in use by {owner}; stop it, or choose another --data",
                "DATA_FOLDER_IN_USE",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"process {os.getpid()} ({command_of(os.getpid())})\n".encode(), 0)

    def close(self) -> None:
        """Lets another server have the folder."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1
