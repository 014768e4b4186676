"""The Ray head and the agent as child processes: started together, started again when one ends, stopped together."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import structlog

from lockstep.contract.errors import UserError
from services import limits
from services.processes.child import Child
from services.processes.owners import free_port
from services.processes.ray_node import head_command, ray_environment
from services.rpc.tokens import new_token

log = structlog.get_logger()

LOG_BYTES: Final = 8 * limits.MIB
TAIL_BYTES: Final = 2000
REFUSED: Final = 3  # the agent's exit status when the API server does not want it


@final
@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """How the Ray head and the agent are started. Empty paths are made up."""

    files: Path
    server: str
    agent_token_file: Path
    cpus: int
    slots: int
    ray_port: int = 0
    node_ip: str = ""
    ray_token_file: Path | None = None
    logs: Path | None = None  # a folder; without it children write to our stderr
    take_over: bool = False
    remove: Sequence[Path] = ()  # what must not outlive this process, also where it is killed


def scratch_folder() -> Path:
    """A folder of its own with a short path: Ray puts sockets into it."""
    return Path(tempfile.mkdtemp(prefix="lockstep-", dir="/tmp"))


def write_secret(path: Path, text: str) -> None:
    """Writes a file that only its owner can read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    partial.replace(path)


@final
class Cluster:
    """One Ray head and one agent. `failure` says why it cannot go on; `stopped` is set then."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self.stopped = asyncio.Event()
        self.failure = ""
        self.ray_address = ""
        self._ray: Child | None = None
        self._agent: Child | None = None
        self._environment: dict[str, str] = {}
        self._starts: deque[float] = deque(maxlen=limits.RESTARTS)
        self._supervision: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts both; from now on they are watched."""
        await self._start_ray()
        await self._start_agent(self._settings.take_over)
        self._supervision = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """Ends the agent, then Ray; nothing of either is left."""
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.gather(self._supervision, return_exceptions=True)
        for child in (self._agent, self._ray):
            if child is not None:
                await child.stop()

    async def _start_ray(self) -> None:
        folder = scratch_folder()
        token_file = self._settings.ray_token_file or folder / "ray_token"
        if self._settings.ray_token_file is None:
            write_secret(token_file, new_token())
        port = self._settings.ray_port or free_port()
        host = self._settings.node_ip or "127.0.0.1"
        self.ray_address = f"{host}:{port}"
        self._environment = ray_environment(token_file)
        command = head_command(folder, self._settings.cpus, self._settings.node_ip, port)
        try:
            ours = self._settings.remove
            self._ray = await Child.start("ray", command, self._environment, self._log("ray"), (folder,), ours)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        await self._await_ray(host, port)

    async def _await_ray(self, host: str, port: int) -> None:
        """Until the head takes connections: the agent's first coordinator then need not wait and try again."""
        assert self._ray is not None
        deadline = time.monotonic() + limits.RAY_START_SECONDS
        while time.monotonic() < deadline and not self._ray.ended:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return
        how = "ended at once" if self._ray.ended else f"did not start within {limits.RAY_START_SECONDS:.0f} s"
        await self._ray.stop()
        remedy = f"the Ray head {how}{self._tail('ray')}"
        raise UserError.of("ray", self.ray_address, remedy, "RAY_DID_NOT_START")

    async def _start_agent(self, take_over: bool) -> None:
        settings = self._settings
        command = [
            *(sys.executable, "-m", "coordinator.agent", "--server", settings.server),
            *("--token-file", str(settings.agent_token_file), "--files", str(settings.files)),
            *("--ray-address", self.ray_address, "--slots", str(settings.slots)),
            *(("--take-over",) if take_over else ()),
        ]
        self._agent = await Child.start("agent", command, self._environment, self._log("agent"))

    async def _supervise(self) -> None:
        """Starts again what ended by itself: the agent alone, or Ray and then the agent."""
        try:
            while True:
                assert self._ray is not None and self._agent is not None
                waits = [asyncio.create_task(child.wait()) for child in (self._ray, self._agent)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
                ray_ended, status = self._ray.ended, await self._agent.wait() if self._agent.ended else None
                if status == REFUSED:
                    raise UserError.of("agent", "", f"the API server refused this agent{self._tail('agent')}", "AGENT_REFUSED")
                log.warning("restarting", ended="ray" if ray_ended else "agent", status=status)
                self._count_start(f"{'the Ray head' if ray_ended else 'the agent'} ended")
                if ray_ended:
                    await self._agent.stop()
                    await self._start_ray()
                # Our own agent before is gone for certain, whatever the server has noticed.
                await self._start_agent(take_over=True)
        except Exception as error:
            self.failure = str(error)
            self.stopped.set()

    def _count_start(self, what: str) -> None:
        now = time.monotonic()
        self._starts.append(now)
        if len(self._starts) == limits.RESTARTS and now - self._starts[0] < limits.RESTART_WINDOW_SECONDS:
            remedy = f"{what} {limits.RESTARTS} times within {limits.RESTART_WINDOW_SECONDS:.0f} s{self._tail('agent')}"
            raise UserError.of("cluster", "", remedy, "CLUSTER_FAILS")

    def _log(self, name: str) -> Path | None:
        if self._settings.logs is None:
            return None
        self._settings.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._settings.logs / f"{name}.log"
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        path.touch(mode=0o600)
        return path

    def _tail(self, name: str) -> str:
        """What the log says last."""
        path = self._log(name)
        if path is None:
            return "; its words are above"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace").strip()
        return f"; {path} says:\n{text}" if text else f"; {path} is empty"
