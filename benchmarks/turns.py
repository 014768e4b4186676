"""The two sides of a race take turns over pipes: a line of JSON asks, a line of JSON answers. Plain Python, for both sides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, final

ROOT = Path(__file__).parents[1]
# Read when NumPy and PyTorch are loaded, so they must stand in a side's environment before.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """A side's main loop: {"command": name, ...arguments} in, the result out, until the pipe closes."""
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(commands[asked.pop("command")](**asked)), flush=True)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Processor time of this process: a neighbour on a shared machine does not count."""
    began = time.process_time()
    work()
    return time.process_time() - began


@final
class MemoryGauge:
    """Growth of this process's resident memory since the gauge was made, but for pages of files, which the system may drop."""

    def __init__(self) -> None:
        self._before_kib, self._files_kib = _status_kib("VmRSS"), _status_kib("RssFile")

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Peak during `work` over what there was when the gauge was made."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        work()
        # Pages of files come and stay: at the peak there were no more than at the end.
        return 1024 * (_status_kib("VmHWM") - self._before_kib - (_status_kib("RssFile") - self._files_kib))


def _status_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {name}; memory is measured on Linux alone")


@final
class Side:
    """A side's process, as the driver sees it; it inherits the driver's cores, and has so many threads."""

    def __init__(self, python: str, module: str, arguments: Sequence[str], threads: int = 1) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                **dict.fromkeys(THREAD_VARIABLES, str(threads)),
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}",
            },
        )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._process.kill()
        self._process.communicate()

    def ask(self, command: str, **arguments: Any) -> Any:
        """What the side answers. Raises RuntimeError where it ended instead; why stands on stderr."""
        self._tell(command, arguments)
        return self._hear(command)

    def _tell(self, command: str, arguments: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended, which is said when nothing is heard
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()

    def _hear(self, command: str) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended when it was asked for {command!r}; see above")
        return json.loads(line)

    @staticmethod
    def ask_all(sides: Sequence[Side], command: str, **arguments: Any) -> list[Any]:
        """What each side answers when all are asked at once, for what they do together."""
        for side in sides:
            side._tell(command, arguments)
        return [side._hear(command) for side in sides]
