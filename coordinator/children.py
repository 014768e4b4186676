"""Coordinators as the agent's child processes: started, told what is wanted, killed, one of them kept warm."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from coordinator import framing, limits
from lockstep.internal.v1 import agent_service_pb2 as agent


@final
@dataclass(frozen=True, slots=True)
class Launch:
    """How coordinators are started."""

    files_folder: Path
    group: str
    ray_address: str
    slots: int

    async def start(self, in_order: Sequence[str] = ()) -> Child:
        """Starts a coordinator that attaches and waits for its order; nodes that are in order it does not look at again."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "coordinator.run", "--files", str(self.files_folder), "--group", self.group),
            *("--ray-address", self.ray_address, "--slots", str(self.slots), "--parent", str(os.getpid())),
            *("--in-order", *in_order),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={"RAY_gcs_rpc_server_reconnect_timeout_s": "10", "RAY_BACKEND_LOG_LEVEL": "error", **os.environ},
            start_new_session=True,
        )
        return Child(process)


@final
class Child:
    """One coordinator."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.wish = agent.RunWish()  # as it was told last
        self.told_at = 0.0  # when the intent was
        self.ended_at: float | None = None  # when the end of its run was acknowledged

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it lives."""
        return self._process.returncode

    def tell(self, wish: agent.RunWish) -> None:
        """Says what is wanted; the first time that is its order."""
        assert self._process.stdin is not None
        if wish.intent != self.wish.intent:
            self.told_at = asyncio.get_running_loop().time()
        self.wish = wish
        if not self._process.stdin.is_closing():
            self._process.stdin.write(framing.pack(wish.SerializeToString()))

    async def capacities(self) -> AsyncIterator[agent.Capacity]:
        """What it reports while it is warm; ends when it ends, raises TimeoutError when it is silent too long."""
        assert self._process.stdout is not None
        frames = framing.Frames()
        while True:
            async with asyncio.timeout(limits.CAPACITY_SILENCE_S):
                data = await self._process.stdout.read(1 << 16)
            if not data:
                return
            for frame in frames.feed(data):
                yield agent.Capacity.FromString(frame)

    def kill(self) -> None:
        """Ends it at once; its workers end with it."""
        if self._process.returncode is None:
            self._process.kill()

    async def wait(self) -> int:
        """Waits for its end and gives its exit status."""
        return await self._process.wait()


@final
class Warm:
    """Keeps one coordinator attached and waiting, and knows the cluster's capacity through it."""

    def __init__(self, launch: Launch, changed: asyncio.Event) -> None:
        self._launch = launch
        self._changed = changed
        self._child: Child | None = None
        self._taken = asyncio.Event()
        self.capacity: agent.Capacity | None = None

    async def take(self) -> Child:
        """A coordinator for a run: the warm one, or a new one when there is none."""
        child, self._child = self._child, None
        self._taken.set()
        return child if child is not None and child.returncode is None else await self._launch.start()

    async def keep(self) -> None:
        """Starts a coordinator whenever there is none; for ever."""
        backoff_s = limits.WARM_FIRST_S
        while True:
            child = self._child = await self._launch.start(self._in_order())
            self._taken.clear()
            taken = asyncio.ensure_future(self._taken.wait())
            listening = asyncio.ensure_future(self._listen(child))
            try:
                await asyncio.wait({taken, listening}, return_when=asyncio.FIRST_COMPLETED)
                if taken.done():
                    # It has an order now. The next one takes its place, but not its processor time while its workers start.
                    await asyncio.wait({listening}, timeout=limits.WARM_AFTER_S)
                    backoff_s = limits.WARM_FIRST_S
                    continue
            finally:
                taken.cancel()
                listening.cancel()
                if self._child is child:
                    child.kill()
            await child.wait()
            self._child = None
            problem = self.capacity.problems if self.capacity and not self.capacity.nodes else []
            self._tell(agent.Capacity(problems=problem or ["the cluster is lost; the agent tries to reach it again"]))
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, limits.WARM_LAST_S)

    async def _listen(self, child: Child) -> None:
        try:
            async for capacity in child.capacities():
                self._tell(capacity)
        except (TimeoutError, framing.FrameError):
            if self._child is child:  # one that was taken has an order now, and other things to say
                child.kill()

    def _in_order(self) -> list[str]:
        """The nodes that the coordinator before has seen, if none lacked anything."""
        return [node.node_id for node in self.capacity.nodes] if self.capacity and not self.capacity.problems else []

    def _tell(self, capacity: agent.Capacity) -> None:
        if capacity != self.capacity:
            self.capacity = capacity
            self._changed.set()

    def close(self) -> None:
        """Ends the warm coordinator."""
        if self._child is not None:
            self._child.kill()
