"""What the coordinator's code meets outside of itself, exchanged for a simulation's: the disk's calls, the transfer of state,
the heartbeat's thread, random keys, and the wall clock."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from lockstep.internal.v1.worker_pb2 import PrepareReply, ReceiveReply, SnapshotReply
from tests.faults.simulation.arithmetic import F32
from tests.faults.simulation.disk import Disk
from tests.faults.simulation.plan import Fault, Kind
from tests.faults.simulation.stage import Stage
from tests.faults.simulation.worker import SimulatedWorker
from worker.collective.handshake import Membership
from worker.state_transfer import TransferError


class _NoHeartbeat:
    """Nobody listens to beats here."""

    def __init__(self, group: object) -> None:
        return None

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


@contextmanager
def simulated(stage: Stage, disk: Disk) -> Iterator[None]:
    """The world of one run."""
    transfer = _Transfer(stage)
    wall = SimpleNamespace(now=lambda zone: datetime.fromtimestamp(1_700_000_000 + stage.clock.now, zone))
    keys = random.Random(stage.faults.acts)
    with (
        patch("coordinator.crew.Heartbeat", _NoHeartbeat),
        patch("coordinator.members.fetch_state", transfer.fetch),
        patch("coordinator.members.give_state", transfer.give),
        patch("coordinator.members.secrets", SimpleNamespace(token_bytes=keys.randbytes)),
        patch("coordinator.model_files.datetime", wall),
        disk.attached(),
    ):
        yield


class _Transfer:
    """State between coordinator and workers, as worker.state_transfer moves it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def fetch(
        self,
        reply: SnapshotReply,
        endpoint: PrepareReply,
        same_node: bool,
        member: Membership,
        rank: int,
    ) -> dict[tuple[str, int, int], F32]:
        """Copies what the worker offers. Raises TransferError."""
        self._stage.faults.act("fetch")
        worker = self._reached(endpoint, member, rank)
        part = worker.member()
        if part.offered != reply.step:
            raise TransferError(f"the state of worker {rank} at step {reply.step} cannot be had: it closed the link")
        return {(vector.name, vector.first, vector.end): self._range(worker, vector).copy() for vector in reply.vectors}

    def give(
        self,
        vectors: Mapping[str, F32],
        step: int,
        reply: ReceiveReply,
        endpoint: PrepareReply,
        same_node: bool,
        member: Membership,
        rank: int,
    ) -> None:
        """Puts what the worker asked for in its place. Raises TransferError."""
        self._stage.faults.act("give")
        worker = self._reached(endpoint, member, rank)
        part = worker.member()
        if part.wanted != step:
            raise TransferError(f"the state of step {step} cannot be given to worker {rank}: it closed the link")
        self._stage.watch(step, vectors["parameters"], vectors["velocity"])
        for vector in reply.vectors:
            self._range(worker, vector)[:] = vectors[vector.name][vector.first : vector.end]

    def _range(self, worker: SimulatedWorker, vector: Any) -> F32:
        part = worker.member()
        if vector.name == "parameters":
            return part.leader.parameters[vector.first : vector.end]
        assert (vector.first, vector.end) == part.chunk
        return part.velocity

    def _reached(self, endpoint: PrepareReply, member: Membership, rank: int) -> SimulatedWorker:
        worker = self._stage.find(endpoint.pid)
        if worker is None:
            raise TransferError(f"the state of worker {rank} cannot be moved: [Errno 3] No such process")
        if worker.cut:
            worker.cut = False
            self._stage.faults.strike(Fault(Kind.CUT, self._stage.faults.calls, rank), f"of worker {rank}")
            raise TransferError(f"the state of worker {rank} cannot be moved: the link was reset")
        part = worker.member()
        assert (part.key, part.run, part.group, part.rank) == (member.key, member.run_number, member.group_number, rank)
        return worker
