"""An agent as a process of its own, for the tests, and the processes under it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.coordinator.api_server import TOKEN


class AgentProcess:
    """Starts `python -m coordinator.agent` with workers as plain processes, or on the Ray at `ray_address`."""

    def __init__(
        self,
        port: int,
        files_folder: Path,
        *,
        ray_address: str = "",
        slots: int = 2,
        token: str = TOKEN,
        environment: dict[str, str] | None = None,
    ) -> None:
        token_file = files_folder.parent / "agent-token"
        token_file.write_text(token + "\n")
        command = [sys.executable, "-m", "coordinator.agent", "--server", f"127.0.0.1:{port}", "--token-file", str(token_file)]
        command += ["--files", str(files_folder), "--slots", str(slots)]
        command += ["--ray-address", ray_address] if ray_address else []
        group = {"LOCKSTEP_GROUP": "ray" if ray_address else "local"}
        self.log = (files_folder.parent / "agent.log").open("ab")
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **group, **(environment or {})},
            stderr=self.log,
            start_new_session=True,
        )

    def kill(self) -> None:
        """SIGKILL, without a last word."""
        self.process.kill()
        self.process.wait(10)
        self.log.close()

    def stop(self) -> int:
        """SIGTERM; gives the exit code. Everything under it must be gone soon."""
        under = self.descendants()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(15)
        finally:
            self.process.kill()  # of no effect on one that has ended, as it must
            self.log.close()
        end = time.monotonic() + 10
        while left := [pid for pid in under if Path(f"/proc/{pid}").exists() and _state(pid) not in "ZX"]:
            assert time.monotonic() < end, f"still there: {left}"
            time.sleep(0.02)
        return code

    def descendants(self) -> list[int]:
        """All processes under the agent."""
        return [pid for child in _children(self.process.pid) for pid in [child, *_below(child)]]

    def coordinators(self) -> list[int]:
        """The processes right under it: the warm one and those of runs."""
        return _children(self.process.pid)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # it has ended
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):  # that thread has
                found += [int(word) for word in task.read_text().split()]
    return found


def _below(pid: int) -> list[int]:
    return [below for child in _children(pid) for below in [child, *_below(child)]]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
