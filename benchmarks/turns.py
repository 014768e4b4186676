"""The two sides of a race take turns over pipes: a line of JSON asks, a line of JSON answers. Plain Python, for both sides."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, final

ANSWER_S = 1800.0  # for the longest turn that somebody may ask for
END_S = 60.0  # of a side, once nothing more is asked
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
        self.end_input()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_S)
            raise RuntimeError(f"{self._module} did not end within {END_S:g} s of the end of its input") from error
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()

    def end_input(self) -> None:
        """Nothing more will be asked: the process ends when it has answered."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def ask(self, command: str, **arguments: Any) -> Any:
        """What the side answers. Raises RuntimeError where it ended instead; why stands on stderr."""
        self.tell(command, arguments)
        return self.hear(command)

    def tell(self, command: str, arguments: Mapping[str, Any]) -> None:
        """Asks, and does not wait."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended, which is said when nothing is heard
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()

    def hear(self, command: str) -> Any:
        """The answer to what was told. Raises RuntimeError where there is none."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_S)[0]:
            raise RuntimeError(f"{self._module} did not answer {command!r} within {ANSWER_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended when it was asked for {command!r}; see above")
        return json.loads(line)


@final
class Group:
    """Sides that do something together: all are asked before any answer is awaited."""

    def __init__(self, sides: Sequence[Side]) -> None:
        self._sides = tuple(sides)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for side in self._sides:
            side.end_input()  # those that wait for each other at their end must all have heard of it
        for side in self._sides:
            side.__exit__(kind, error, trace)

    def ask(self, command: str, **arguments: Any) -> list[Any]:
        """What each answers, in their order. Raises RuntimeError where one ended instead."""
        for side in self._sides:
            side.tell(command, arguments)
        return [side.hear(command) for side in self._sides]
