"""Workers as Ray actors, one by one: made on a node, kept ready there, ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, final

import ray
import structlog
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from coordinator import limits
from coordinator.group.host import Host
from lockstep.v1 import cluster_service_pb2 as cluster

# Ray types these calls for other uses than ours, or not at all.
_ray: Any = ray


class _Actor:
    """A worker in its own process; beats are heard while a request is at work."""

    def __init__(self, handler: str) -> None:
        self._node_id = ray.get_runtime_context().get_node_id()
        self._host = Host(handler, self._node_id, _ray.util.get_node_ip_address())

    def describe(self) -> tuple[str, int]:
        """Node id and process id."""
        return self._node_id, os.getpid()

    def handle(self, request: bytes) -> bytes:
        return self._host.handle(request)

    @ray.method(concurrency_group="beat")
    def beat(self) -> None:
        self._host.beat()


def _actor_class() -> Any:
    return _ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"beat": 1})(_Actor)


@final
class Ready:
    """Actors without CPUs that wait on the nodes: a new process would need a second to import what a worker imports.

    They belong to this driver and end with it. A group takes those on the nodes where its bundles were placed. Making one
    takes a second of a processor: at first there is one for each CPU that nobody holds, and only later for each that a job
    works on, so that short jobs do not pay for the next.
    """

    def __init__(self, handler: str) -> None:
        self._handler = handler
        self._actors: dict[str, list[Any]] = {}
        self._beats: dict[Any, Any] = {}
        self._beaten_at = self._again_at = 0.0
        self._all_at = time.monotonic() + limits.READY_ALL_S

    def keep(self, nodes: Sequence[cluster.Node]) -> None:
        """Makes what is missing, drops what is gone, beats the rest every few seconds."""
        for reference in [beat for beat in self._beats.values() if ray.wait([beat], timeout=0)[0]]:
            try:
                ray.get(reference, timeout=limits.JOIN_S)
            except RayError:
                self._drop(reference)
                self._again_at = time.monotonic() + limits.READY_AGAIN_S  # a node on which none can live is no busy loop
        there = {node.node_id: min(node.slots, limits.READY_WORKERS) for node in nodes}
        for node_id in set(self._actors) - set(there):
            del self._actors[node_id]
        wanted = there if time.monotonic() >= self._all_at else _free(there)
        for node_id in there:
            actors = self._actors.setdefault(node_id, [])
            while len(actors) < wanted[node_id] and time.monotonic() >= self._again_at:
                actors.append(new_actor(self._handler, node_id))
        now = time.monotonic()
        if now - self._beaten_at >= limits.HEARTBEAT_S:
            self._beaten_at = now
            self._beats = {actor: actor.beat.remote() for actors in self._actors.values() for actor in actors}

    def _drop(self, reference: Any) -> None:
        gone = next(actor for actor, beat in self._beats.items() if beat == reference)
        del self._beats[gone]
        for actors in self._actors.values():
            if gone in actors:
                actors.remove(gone)

    def take(self, handler: str, node_ids: Sequence[str]) -> list[Any | None]:
        """An actor with this handler for each place, None where there is none; the others are ended.

        None is given where they host another, and once they were left without a beat for long, as while a lock or a placement
        was awaited: they may have ended themselves.
        """
        fit = handler == self._handler and time.monotonic() - self._beaten_at < limits.WORKER_SILENCE_S / 2
        taken = [self._actors[node].pop(0) if fit and self._actors.get(node) else None for node in node_ids]
        for actors in self._actors.values():
            for actor in actors:
                ray.kill(actor, no_restart=True)
        self._actors.clear()
        self._beats.clear()
        return taken


def _free(slots: Mapping[str, int]) -> dict[str, int]:
    """As many of the slots of each node as nobody holds."""
    available = _ray._private.state.available_resources_per_node()
    return {node_id: min(count, int(available.get(node_id, {}).get("CPU", 0))) for node_id, count in slots.items()}


def new_actor(handler: str, node_id: str) -> Any:
    """An actor on this very node, which takes no CPU there."""
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return _actor_class().options(num_cpus=0, scheduling_strategy=strategy).remote(handler)


def end_actor(actor: Any, node_id: str, pid: int) -> None:
    """Ends an actor at once: one that is stopped does not hear Ray, which would take seconds to end it."""
    give_back(partial(ray.kill, actor, no_restart=True))
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    give_back(partial(_ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=strategy).remote, pid))


def _kill(pid: int) -> None:
    with suppress(OSError):
        if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():  # else the number is another process's by now
            os.kill(pid, signal.SIGKILL)


def give_back(act: Callable[[], object]) -> None:
    """Gives something back to Ray. Once the head is gone it cannot take it; that must not stand in place of the run's end."""
    try:
        act()
    except RayError as error:
        structlog.get_logger().warning("not given back to Ray", reason=first_line(error))


def first_line(error: BaseException) -> str:
    """What an error says, without its trace."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def last_line(error: BaseException) -> str:
    """What an error that holds another's trace says at its end."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
