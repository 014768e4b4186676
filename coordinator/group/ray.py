"""Workers as Ray actors: the only file that imports ray. Ray places and delivers; Lockstep decides."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, final

import ray
import structlog
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
)
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from coordinator import limits
from coordinator.exit_status import Cause, out_of_memory_kills
from coordinator.group.cluster import Cluster, ClusterUnreachable
from coordinator.group.group import SHARD_WORKER, GroupStartFailed, Interrupted, Replies, WorkerGroup, WorkerLoss, never
from coordinator.group.host import Host
from coordinator.preflight import Needs, lacks
from lockstep.v1 import cluster_service_pb2 as cluster

T = TypeVar("T")

# Ray types these calls for other uses than ours, or not at all.
_ray: Any = ray


@final
class RayCluster(Cluster):
    """A running Ray cluster, to which this process attaches as a driver of its own."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._ready = _Ready(SHARD_WORKER)

    @contextmanager
    def attached(self) -> Iterator[None]:
        try:
            ray.init(
                address=self._address,
                namespace=f"lockstep-{uuid.uuid4().hex}",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RayError, RuntimeError, ValueError) as error:
            raise ClusterUnreachable(
                f"Ray at {self._address} cannot be reached ({type(error).__name__}: {_first_line(error)}); see that its head "
                "runs, and that RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH are the same as there"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()

    def nodes(self) -> list[cluster.Node]:
        try:
            nodes = _ray.nodes()
        except (RayError, ConnectionError, RuntimeError) as error:
            raise ClusterUnreachable(f"Ray does not list its nodes: {_first_line(error)}") from error
        found = [
            cluster.Node(node_id=node["NodeID"], address=node["NodeManagerAddress"], slots=int(node["Resources"]["CPU"]))
            for node in nodes
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        ]
        return sorted(found, key=lambda node: node.node_id)

    def lacks(self, node_id: str, needs: Needs, deadline_s: float) -> list[str]:
        task = _ray.remote(num_cpus=0, max_retries=0)(lacks)
        reference = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(needs)
        try:
            found: list[str] = ray.get(reference, timeout=deadline_s)
        except GetTimeoutError:
            return [f"did not answer the preflight within {deadline_s:.0f} s; see its Ray log"]
        except RayError as error:
            return [f"the preflight could not run there: {_first_line(error)}"]
        return found

    def prepare(self, nodes: Sequence[cluster.Node]) -> None:
        self._ready.keep(nodes)

    def group(self) -> WorkerGroup:
        return RayGroup(ready=self._ready)


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
class _Ready:
    """Actors without CPUs that wait on the nodes: a new process would need a second to import what a worker imports.

    They belong to this driver and end with it. A group takes those on the nodes where its bundles were placed.
    """

    def __init__(self, handler: str) -> None:
        self._handler = handler
        self._actors: dict[str, list[Any]] = {}
        self._beats: dict[Any, Any] = {}
        self._beaten_at = self._again_at = 0.0

    def keep(self, nodes: Sequence[cluster.Node]) -> None:
        """Makes what is missing, drops what is gone, beats the rest every few seconds."""
        for reference in [beat for beat in self._beats.values() if ray.wait([beat], timeout=0)[0]]:
            try:
                ray.get(reference)
            except RayError:
                self._drop(reference)
                self._again_at = time.monotonic() + limits.READY_AGAIN_S  # a node on which none can live is no busy loop
        there = {node.node_id: min(node.slots, limits.READY_WORKERS) for node in nodes}
        for node_id in set(self._actors) - set(there):
            del self._actors[node_id]
        for node_id, wanted in there.items():
            actors = self._actors.setdefault(node_id, [])
            strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
            while len(actors) < wanted and time.monotonic() >= self._again_at:
                actors.append(_actor_class().options(num_cpus=0, scheduling_strategy=strategy).remote(self._handler))
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

    def take(self, node_ids: Sequence[str]) -> list[Any | None]:
        """An actor for each place, None where there is none; the others are ended.

        None is given once they were left without a beat for long, as while a lock or a placement was awaited: they may have
        ended themselves.
        """
        heard = time.monotonic() - self._beaten_at < limits.WORKER_SILENCE_S / 2
        taken = [self._actors[node].pop(0) if heard and self._actors.get(node) else None for node in node_ids]
        for actors in self._actors.values():
            for actor in actors:
                ray.kill(actor, no_restart=True)
        self._actors.clear()
        self._beats.clear()
        return taken


@final
class RayGroup(WorkerGroup):
    """One actor per worker, for each of which a placement group holds one CPU; never restarted, never detached."""

    def __init__(self, handler: str = SHARD_WORKER, ready: _Ready | None = None) -> None:
        self._handler = handler
        self._ready = ready
        self._placement: PlacementGroup | None = None
        self._actors: list[Any] = []
        self._descriptions: list[tuple[str, int]] = []
        self._beats: dict[Any, Any] = {}
        self._out_of_memory = 0

    @property
    def size(self) -> int:
        return len(self._actors)

    @property
    def here(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def pids(self) -> list[int]:
        """The processes, by rank; each on its node."""
        return [pid for _, pid in self._descriptions]

    def start(self, workers: int, deadline_s: float, interrupted: Callable[[], bool] = never) -> None:
        deadline = time.monotonic() + deadline_s
        self._out_of_memory = out_of_memory_kills()
        try:
            self._placement = placement_group([{"CPU": 1}] * workers, strategy="PACK")
            while not self._placement.wait(limits.POLL_S):
                if interrupted():
                    raise Interrupted
                if time.monotonic() > deadline:
                    raise GroupStartFailed(
                        f"{workers} workers could not be placed within {deadline_s:.0f} s: Ray has {_free_cpus():g} free CPUs; "
                        "add nodes, or ask for fewer workers",
                        outside=True,
                    )
            placed = placement_group_table(self._placement)["bundles_to_node_id"]
            ready = self._ready.take([placed[bundle] for bundle in range(workers)]) if self._ready else [None] * workers
            self._actors = [
                actor if actor is not None else self._new_actor(self._placement, bundle) for bundle, actor in enumerate(ready)
            ]
            references = [actor.describe.remote() for actor in self._actors]
            self._descriptions = [("", 0)] * workers
            described: dict[int, tuple[str, int]] = {}
            losses = self._collect(references, dict(enumerate(references)), described, deadline, interrupted)
            if losses or len(described) < workers:
                raise GroupStartFailed(
                    str(losses[0]) if losses else f"{workers - len(described)} of {workers} workers did not start in time",
                    outside=bool(losses) and losses[0].cause.outside,
                )
            self._descriptions = [described[rank] for rank in range(workers)]
        except (GroupStartFailed, Interrupted):
            self.close()
            raise
        except RayError as error:
            self.close()
            raise GroupStartFailed(f"Ray did not start the workers: {_first_line(error)}", outside=True) from error

    def _new_actor(self, placement: PlacementGroup, bundle: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=bundle)
        return _actor_class().options(num_cpus=1, scheduling_strategy=strategy).remote(self._handler)

    def call(self, requests: Mapping[int, bytes], deadline_s: float, interrupted: Callable[[], bool] = never) -> Replies:
        deadline = time.monotonic() + deadline_s
        reference_of = {rank: self._actors[rank].handle.remote(request) for rank, request in requests.items()}
        replies: dict[int, bytes] = {}
        losses = self._collect(list(reference_of.values()), reference_of, replies, deadline, interrupted)
        if not losses:
            losses = [
                self._loss(rank, Cause.LATE, f"did not answer within {deadline_s:.0f} s")
                for rank in sorted(set(requests) - set(replies))
            ]
        return Replies(replies, tuple(losses))

    def _collect(
        self,
        waiting: list[Any],
        reference_of: Mapping[int, Any],
        values: dict[int, T],
        deadline: float,
        interrupted: Callable[[], bool],
    ) -> list[WorkerLoss]:
        """Fills `values` by rank until all are there, the deadline passed, or a loss and its grace."""
        rank_of = {reference: rank for rank, reference in reference_of.items()}
        losses = []
        while waiting:
            if interrupted():
                raise Interrupted
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=min(left_s, limits.POLL_S))
            for reference in ready:
                rank = rank_of[reference]
                try:
                    values[rank] = ray.get(reference, timeout=limits.JOIN_S)
                except RayError as error:
                    losses.append(self._interpret(rank, error))
                    deadline = min(deadline, time.monotonic() + limits.LOSS_GRACE_S)
        return sorted(losses, key=lambda loss: loss.rank)

    def _interpret(self, rank: int, error: RayError) -> WorkerLoss:
        if isinstance(error, RayTaskError):
            return self._loss(rank, Cause.CRASHED, f"failed to start or to answer: {_first_line(error.cause or error)}")
        if isinstance(error, OutOfMemoryError):
            return self._loss(rank, Cause.OUT_OF_MEMORY, "was killed by Ray because its node ran out of memory")
        if isinstance(error, ActorUnavailableError):
            return self._loss(rank, Cause.UNREACHABLE, "cannot be reached: its node is out of the cluster or cut off")
        if isinstance(error, NodeDiedError):
            return self._loss(rank, Cause.NODE_GONE, "is out of the cluster, gone with its node")
        if isinstance(error, ActorDiedError):
            text = str(error)
            if "node has died" in text or "node was terminated" in text or "owner's node" in text:
                return self._loss(rank, Cause.NODE_GONE, "is out of the cluster, gone with its node")
            if "out of memory" in text.lower() or out_of_memory_kills() > self._out_of_memory:
                return self._loss(rank, Cause.OUT_OF_MEMORY, "was killed by the kernel because memory ran out")
            if "creation task" in text or "__init__" in text:
                return self._loss(rank, Cause.CRASHED, f"failed to start: {_last_line(error)}")
            return self._loss(rank, Cause.KILLED, "died: it was killed from outside, or crashed; its node's log says more")
        return self._loss(rank, Cause.UNREACHABLE, f"did not answer: {_first_line(error)}")

    def _loss(self, rank: int, cause: Cause, text: str) -> WorkerLoss:
        node, pid = self._descriptions[rank]
        return WorkerLoss(rank, node, pid, cause, text)

    def keep(self, ranks: Sequence[int]) -> None:
        dropped = [actor for rank, actor in enumerate(self._actors) if rank not in ranks]
        self._actors = [self._actors[rank] for rank in ranks]
        self._descriptions = [self._descriptions[rank] for rank in ranks]
        for actor in dropped:
            ray.kill(actor, no_restart=True)

    def beat(self) -> None:
        for actor in list(self._actors):
            last = self._beats.get(actor)
            if last is None or ray.wait([last], timeout=0)[0]:  # one that hangs gets no second beat on top
                self._beats[actor] = actor.beat.remote()

    def close(self) -> None:
        actors, self._actors = self._actors, []
        placement, self._placement = self._placement, None
        self._beats.clear()
        for actor in actors:
            _give_back(partial(ray.kill, actor, no_restart=True))
        if placement is not None:
            _give_back(partial(remove_placement_group, placement))


def _give_back(act: Callable[[], object]) -> None:
    """Gives something back to Ray. Once the head is gone it cannot take it; that must not stand in place of the run's end."""
    try:
        act()
    except RayError as error:
        structlog.get_logger().warning("not given back to Ray", reason=_first_line(error))


def _free_cpus() -> float:
    return float(_ray.available_resources().get("CPU", 0.0))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
