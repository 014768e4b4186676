"""A command under a guard: started, watched and stopped; it ends when this process does, however that ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from services import limits


class Child:
    """One guarded process. Its output goes to the file `output`, or to our stderr."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        output: Path | None = None,
        remove: Sequence[Path] = (),
        remove_if_stopped: Sequence[Path] = (),
    ) -> Child:
        """Starts the command; `remove` are paths that are gone once it has ended, the others unless it ended by itself."""
        order = {
            "command": list(command),
            "grace_s": limits.CHILD_STOP_SECONDS - 2,
            "remove": [str(path) for path in remove],
            "remove_if_stopped": [str(path) for path in remove_if_stopped],
        }
        with contextlib.ExitStack() as stack:
            target = stack.enter_context(output.open("ab")) if output else sys.stderr
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.processes.guard"),
                stdin=asyncio.subprocess.PIPE,
                stdout=target,
                stderr=target,
                env=dict(environment),
                start_new_session=True,
            )
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        await process.stdin.drain()
        return cls(name, process)

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left."""
        return self._process.returncode is not None

    async def wait(self) -> int:
        """Waits for its end; the exit status of the command."""
        return await self._process.wait()

    async def stop(self) -> None:
        """Ends it with all its descendants, within a deadline."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(limits.CHILD_STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
