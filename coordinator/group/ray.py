"""Workers as Ray actors: places for them, and calls to them. Ray places and delivers; Lockstep decides."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, final

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
)
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from coordinator import limits
from coordinator.exit_status import Cause, out_of_memory_kills
from coordinator.group.cluster import Cluster, ClusterUnreachable
from coordinator.group.group import (
    SHARD_WORKER,
    AnswersDue,
    GroupStartFailed,
    Interrupted,
    Replies,
    WorkerGroup,
    WorkerLoss,
    never,
    no_alarm,
)
from coordinator.group.ray_actors import Ready, end_actor, first_line, give_back, last_line, new_actor
from coordinator.preflight import Needs, lacks
from lockstep.v1 import cluster_service_pb2 as cluster

T = TypeVar("T")

# Ray types these calls for other uses than ours, or not at all.
_ray: Any = ray
# The label under which Ray gives each node its id.
_NODE_ID = "ray.io/node-id"


@final
class RayCluster(Cluster):
    """A running Ray cluster, to which this process attaches as a driver of its own."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._ready = Ready(SHARD_WORKER)
        self._looks: dict[str, tuple[Any, float]] = {}  # under way, by node, with their deadlines

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
                f"Ray at {self._address} cannot be reached ({type(error).__name__}: {first_line(error)}); see that its head "
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
            raise ClusterUnreachable(f"Ray does not list its nodes: {first_line(error)}") from error
        found = [
            cluster.Node(node_id=node["NodeID"], address=node["NodeManagerAddress"], slots=int(node["Resources"]["CPU"]))
            for node in nodes
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        ]
        return sorted(found, key=lambda node: node.node_id)

    def lacks(self, node_id: str, needs: Needs, deadline_s: float) -> list[str] | None:
        if node_id not in self._looks:
            task = _ray.remote(num_cpus=0, max_retries=0)(lacks)
            strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
            reference = task.options(scheduling_strategy=strategy).remote(needs)
            self._looks[node_id] = reference, time.monotonic() + deadline_s
        reference, end = self._looks[node_id]
        if not ray.wait([reference], timeout=0)[0]:
            if time.monotonic() < end:
                return None
            del self._looks[node_id]
            return [f"did not answer the preflight within {deadline_s:.0f} s; see its Ray log"]
        del self._looks[node_id]
        try:
            found: list[str] = ray.get(reference, timeout=limits.JOIN_S)
        except RayError as error:
            return [f"the preflight could not run there: {first_line(error)}"]
        return found

    def prepare(self, nodes: Sequence[cluster.Node]) -> None:
        self._ready.keep(nodes)

    def group(self, handler: str = SHARD_WORKER) -> WorkerGroup:
        return RayGroup(handler, self._ready)


@final
@dataclass(slots=True)
class _Place:
    """CPUs that a placement group holds for the actors on them; the actors themselves take none, so it can go without them."""

    group: PlacementGroup
    actors: list[Any]


@final
@dataclass(slots=True)
class _Hired:
    """A worker on its way: first it has a place, then a process, and at last it has said where and who it is."""

    place: _Place
    description: tuple[str, int] | None = None
    _reference: Any = None

    def look(self, handler: str) -> None:
        """Goes on where that can be done at once. Raises RayError."""
        if not self.place.actors:
            table = placement_group_table(self.place.group)
            if table["state"] == "CREATED":
                actor = new_actor(handler, table["bundles_to_node_id"][0])
                self.place.actors.append(actor)
                self._reference = actor.describe.remote()
        elif self.description is None and ray.wait([self._reference], timeout=0)[0]:
            self.description = ray.get(self._reference, timeout=limits.JOIN_S)


@final
class RayGroup(WorkerGroup):
    """One actor per worker, with one CPU held for it on its node; never restarted, never detached."""

    def __init__(self, handler: str = SHARD_WORKER, ready: Ready | None = None) -> None:
        self._handler = handler
        self._ready = ready
        self._places: list[_Place] = []
        self._unplaced: list[_Place] = []  # of those who stay, until Ray has placed them
        self._placed_by = 0.0
        self._actors: list[Any] = []
        self._descriptions: list[tuple[str, int]] = []
        self._hired: list[_Hired] = []
        self._failed: list[WorkerLoss] = []
        self._again_at = 0.0
        self._owed: dict[Any, Any] = {}  # the answers that are still to come, by actor
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
            place = _Place(placement_group([{"CPU": 1}] * workers, strategy="PACK"), [])
            self._places.append(place)
            while not place.group.wait(limits.POLL_S):
                if interrupted():
                    raise Interrupted
                if time.monotonic() > deadline:
                    raise GroupStartFailed(
                        f"{workers} workers could not be placed within {deadline_s:.0f} s: Ray has {_free_cpus():g} free CPUs; "
                        "add nodes, or ask for fewer workers",
                        outside=True,
                    )
            placed = placement_group_table(place.group)["bundles_to_node_id"]
            node_ids = [placed[bundle] for bundle in range(workers)]
            ready = self._ready.take(self._handler, node_ids) if self._ready else [None] * workers
            self._actors = [
                actor if actor is not None else new_actor(self._handler, node_id)
                for actor, node_id in zip(ready, node_ids, strict=True)
            ]
            place.actors += self._actors
            references = [actor.describe.remote() for actor in self._actors]
            self._descriptions = [("", 0)] * workers
            described: dict[int, tuple[str, int]] = {}
            losses, _ = self._collect(dict(enumerate(references)), described, deadline, interrupted)
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
            raise GroupStartFailed(f"Ray did not start the workers: {first_line(error)}", outside=True) from error

    def call(
        self,
        requests: Mapping[int, bytes],
        deadline_s: float,
        interrupted: Callable[[], bool] = never,
        alarm: Callable[[bytes], float] = no_alarm,
    ) -> Replies:
        deadline = time.monotonic() + deadline_s
        references = {rank: self._actors[rank].handle.remote(request) for rank, request in requests.items()}
        replies: dict[int, bytes] = {}
        losses, alarmed = self._collect(references, replies, deadline, interrupted, alarm)
        owing = sorted(set(requests) - set(replies) - {loss.rank for loss in losses})
        if not losses and not alarmed:
            losses = [self._loss(rank, Cause.LATE, f"did not answer within {deadline_s:.0f} s") for rank in owing]
        self._owed = {self._actors[rank]: references[rank] for rank in owing}
        return Replies(replies, tuple(losses))

    def settle(self, deadline_s: float, interrupted: Callable[[], bool] = never) -> Replies:
        owed = {rank: self._owed[actor] for rank, actor in enumerate(self._actors) if actor in self._owed}
        replies: dict[int, bytes] = {}
        losses: list[WorkerLoss] = []
        while owed:
            found, _ = self._collect(owed, replies, time.monotonic() + deadline_s, interrupted)
            late = not found
            losses += found or [
                self._loss(rank, Cause.LATE, f"did not answer within {deadline_s:.0f} s")
                for rank in owed
                if rank not in replies
            ]
            gone = {loss.rank for loss in losses}
            owed = {rank: reference for rank, reference in owed.items() if not late and rank not in gone | replies.keys()}
        self._owed.clear()
        return Replies(replies, tuple(losses))

    def _collect(
        self,
        reference_of: Mapping[int, Any],
        values: dict[int, T],
        deadline: float,
        interrupted: Callable[[], bool],
        alarm: Callable[[Any], float] = no_alarm,
    ) -> tuple[list[WorkerLoss], bool]:
        """Fills `values` by rank until all are there, the deadline passed, or a loss or an alarm and its grace."""
        rank_of = {reference: rank for rank, reference in reference_of.items()}
        waiting, losses, due = list(rank_of), [], AnswersDue(deadline)
        while waiting:
            if interrupted():
                raise Interrupted
            left_s = due.end - time.monotonic()
            if left_s <= 0:
                break
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=min(left_s, limits.POLL_S))
            for reference in ready:
                rank = rank_of[reference]
                try:
                    values[rank] = ray.get(reference, timeout=limits.JOIN_S)
                    due.heard(time.monotonic(), alarm(values[rank]))
                except RayError as error:
                    losses.append(self._interpret(rank, error))
                    due.lost(time.monotonic())
        return sorted(losses, key=lambda loss: loss.rank), due.alarmed

    def _interpret(self, rank: int, error: RayError) -> WorkerLoss:
        if isinstance(error, RayTaskError):
            return self._loss(rank, Cause.CRASHED, f"failed to start or to answer: {first_line(error.cause or error)}")
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
                return self._loss(rank, Cause.CRASHED, f"failed to start: {last_line(error)}")
            return self._loss(rank, Cause.KILLED, "died: it was killed from outside, or crashed; its node's log says more")
        return self._loss(rank, Cause.UNREACHABLE, f"did not answer: {first_line(error)}")

    def _loss(self, rank: int, cause: Cause, text: str) -> WorkerLoss:
        node, pid = self._descriptions[rank]
        return WorkerLoss(rank, node, pid, cause, text)

    def keep(self, ranks: Sequence[int]) -> None:
        dropped = [rank for rank in range(len(self._actors)) if rank not in ranks]
        gone = [self._actors[rank] for rank in dropped]
        for rank in dropped:
            end_actor(self._actors[rank], *self._descriptions[rank])
        node_of = {actor: node for actor, (node, _) in zip(self._actors, self._descriptions, strict=True)}
        self._actors = [self._actors[rank] for rank in ranks]
        self._descriptions = [self._descriptions[rank] for rank in ranks]
        self._beats = {actor: beat for actor, beat in self._beats.items() if actor not in gone}
        self._out_of_memory = out_of_memory_kills()
        for place in [place for place in self._places if any(actor in gone for actor in place.actors)]:
            # A placement group can only go as a whole: those who stay get places of their own, where they are.
            self._places.remove(place)
            give_back(partial(remove_placement_group, place.group))
            held = [_Place(_held_on(node_of[actor]), [actor]) for actor in place.actors if actor not in gone]
            self._places += held
            self._unplaced += held
            self._placed_by = time.monotonic() + limits.PLACE_FIRST_S

    def hire(self, workers: int) -> None:
        while len(self._hired) > workers:
            self._send_home(self._hired[-1])
        if len(self._hired) < workers and not self._stayers_placed():
            return  # a new one could get the very CPU that waits for one who stays
        while len(self._hired) < workers and time.monotonic() >= self._again_at:
            self._hired.append(_Hired(_Place(placement_group([{"CPU": 1}], strategy="PACK"), [])))

    def _stayers_placed(self) -> bool:
        """Whether those who stay have their CPUs again, or have been waited for long enough."""
        self._unplaced = [place for place in self._unplaced if placement_group_table(place.group)["state"] == "PENDING"]
        return not self._unplaced or time.monotonic() >= self._placed_by

    def _send_home(self, hired: _Hired) -> None:
        self._hired.remove(hired)
        for actor in hired.place.actors:
            give_back(partial(ray.kill, actor, no_restart=True))
        give_back(partial(remove_placement_group, hired.place.group))

    def arrived(self) -> int:
        for hired in list(self._hired):
            try:
                hired.look(self._handler)
            except RayError as error:
                self._failed.append(WorkerLoss(self.size, "", 0, Cause.CRASHED, f"failed to start: {last_line(error)}"))
                self._send_home(hired)
                self._again_at = time.monotonic() + limits.HIRE_AGAIN_S
        return sum(hired.description is not None for hired in self._hired)

    def failed(self) -> Sequence[WorkerLoss]:
        failed, self._failed = self._failed, []
        return failed

    def welcome(self) -> None:
        for hired in list(self._hired):
            if hired.description is not None:
                self._hired.remove(hired)
                self._places.append(hired.place)
                self._descriptions.append(hired.description)
                self._actors += hired.place.actors

    def beat(self) -> None:
        for actor in [*self._actors, *(actor for hired in list(self._hired) for actor in hired.place.actors)]:
            last = self._beats.get(actor)
            if last is None or ray.wait([last], timeout=0)[0]:  # one that hangs gets no second beat on top
                self._beats[actor] = actor.beat.remote()

    def close(self) -> None:
        actors, self._actors = self._actors, []
        places, self._places = self._places, []
        self._beats.clear()
        self._owed.clear()
        for actor in actors:
            give_back(partial(ray.kill, actor, no_restart=True))
        for place in places:
            give_back(partial(remove_placement_group, place.group))
        while self._hired:
            self._send_home(self._hired[-1])


def _held_on(node_id: str) -> PlacementGroup:
    """A place on this very node; an address would not do, which several nodes of one machine may share."""
    held: PlacementGroup = placement_group([{"CPU": 1.0}], strategy="PACK", bundle_label_selector=[{_NODE_ID: node_id}])
    return held


def _free_cpus() -> float:
    return float(_ray.available_resources().get("CPU", 0.0))
