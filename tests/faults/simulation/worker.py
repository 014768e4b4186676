"""A simulated worker: answers the real requests one by one, as the real one would; its group has it take steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np

from lockstep.contract.errors import InternalError
from lockstep.internal.v1 import worker_pb2
from tests.faults.simulation.arithmetic import F32, Arithmetic
from worker.collective.layout import ExchangeLayout
from worker.collective.tree import fold, owned_shards, subtrees
from worker.evaluation import sums_message
from worker.failures import failure_of
from worker.nn.metrics import Sums
from worker.weights_file import read_parameters, read_state


@final
class Part:
    """What a worker has of one group. Each group has new ones."""

    def __init__(self, arithmetic: Arithmetic, request: worker_pb2.PrepareRequest) -> None:
        self.rank, self.nodes = request.rank, tuple(request.node_ids)
        self.key, self.run, self.group = request.group_key, request.order.run_number, request.group_number
        self.files = Path(request.files_folder)
        self.exchange: ExchangeLayout = arithmetic.exchange(self.nodes)
        self.chunk = self.exchange.chunks[self.rank]
        self.node = self.nodes[self.rank]
        self.parameters = np.full(arithmetic.size, np.nan, np.float32)  # used where it leads its node
        self.velocity = np.full(self.chunk[1] - self.chunk[0], np.nan, np.float32)
        self.leader: Part = self
        self.peers: list[Part] = []
        self.step = -1  # no state
        self.offered = self.wanted = -1
        self.stepped = False

    @property
    def leads(self) -> bool:
        """Whether its parameters are those of its node."""
        return self.exchange.leader(self.node) == self.rank

    def hide(self) -> None:
        """The state is about to change."""
        self.offered = self.wanted = -1


@final
class SimulatedWorker:
    """One process. `find` gives the worker of a process id, while it lives."""

    def __init__(
        self,
        arithmetic: Arithmetic,
        pid: int,
        node: str,
        fingerprint: str,
        find: Callable[[int], SimulatedWorker | None],
    ) -> None:
        self._arithmetic, self._find = arithmetic, find
        self.pid, self.node, self.fingerprint = pid, node, fingerprint
        self.part: Part | None = None
        self.dead: tuple[Any, str] | None = None  # cause and clause
        self.cut = False  # its state cannot be moved, once
        self._answers: dict[str, Callable[[Any], dict[str, Any]]] = {
            "join": self._join,
            "prepare": self._prepare,
            "connect": self._connect,
            "receive": self._receive,
            "restore": self._restore,
            "evaluate": self._evaluate,
            "snapshot": self._snapshot,
            "heartbeat": lambda request: {"done": worker_pb2.Done()},
        }

    def handle(self, request: worker_pb2.WorkerRequest) -> worker_pb2.WorkerReply:
        """Answers all but stretches."""
        kind = request.WhichOneof("request") or ""
        try:
            return worker_pb2.WorkerReply(**self._answers[kind](getattr(request, kind)))
        except Exception as error:  # the edge of the process
            return self.fail(error)

    def fail(self, error: Exception) -> worker_pb2.WorkerReply:
        """The answer for an error; the part in its group is over."""
        part = self.part
        rank, step = (part.rank, max(0, part.step)) if part else (0, 0)
        failure = failure_of(error, f"worker {rank} (node {self.node})", step)
        if part is not None:
            part.step = -1
            part.hide()
        return worker_pb2.WorkerReply(failure=failure)

    def member(self) -> Part:
        """Its part in a group. Raises InternalError when there is none."""
        if self.part is None:
            raise InternalError("this worker belongs to no group: prepare comes first")
        return self.part

    def ready(self, step: int) -> Part:
        """Its part, which stands after this step. Raises InternalError when it does not."""
        part = self.member()
        if part.step != step:
            raise InternalError(f"the state after step {step} was asked; the last applied step is {part.step}")
        return part

    def _join(self, request: worker_pb2.JoinRequest) -> dict[str, Any]:
        explanation = {"blas_kernel": self.fingerprint}
        join = worker_pb2.JoinReply(
            pid=self.pid, fingerprint=self.fingerprint, explanation=explanation, host="simulated", node_id=self.node
        )
        return {"join": join}

    def _prepare(self, request: worker_pb2.PrepareRequest) -> dict[str, Any]:
        self.part = part = Part(self._arithmetic, request)
        lo, hi = owned_shards(part.rank, len(part.nodes), self._arithmetic.job.shards)
        return {"prepare": worker_pb2.PrepareReply(pid=self.pid, segment_fd=part.group, first_shard=lo, end_shard=hi)}

    def _connect(self, request: worker_pb2.PeersRequest) -> dict[str, Any]:
        part = self.member()
        workers = [self._find(peer.pid) for peer in request.peers]
        parts = [worker.part for worker in workers if worker is not None and worker.part is not None]
        if len(parts) != len(part.nodes) or any(
            (peer.key, peer.run, peer.group, peer.rank) != (part.key, part.run, part.group, rank)
            for rank, peer in enumerate(parts)
        ):
            raise InternalError("the peers are not those of this group")
        part.peers, part.leader = parts, parts[part.exchange.leader(part.node)]
        return {"done": worker_pb2.Done()}

    def _receive(self, request: worker_pb2.ReceiveRequest) -> dict[str, Any]:
        part = self.member()
        part.hide()
        part.wanted = request.step
        reply = worker_pb2.ReceiveReply()
        self._ranges(reply.vectors, part, part.leads)
        return {"receive": reply}

    def _snapshot(self, request: worker_pb2.SnapshotRequest) -> dict[str, Any]:
        part = self.ready(request.step)
        part.offered = request.step
        reply = worker_pb2.SnapshotReply(step=request.step)
        self._ranges(reply.vectors, part, part.rank == 0)
        return {"snapshot": reply}

    def _ranges(self, vectors: Any, part: Part, parameters: bool) -> None:
        if parameters:
            vectors.add(name="parameters", first=0, end=self._arithmetic.size)
        vectors.add(name="velocity", first=part.chunk[0], end=part.chunk[1])

    def _restore(self, request: worker_pb2.RestoreRequest) -> dict[str, Any]:
        part = self.member()
        if request.received:
            if request.step != part.wanted:
                raise InternalError(f"the state after step {request.step} was put in place; {part.wanted} was to come")
        else:
            folder, layout = part.files / request.checkpoint_folder, self._arithmetic.job.layout
            if part.leads:
                if request.checkpoint_folder:
                    read_parameters(folder, layout, part.parameters)
                else:
                    part.parameters[:] = self._arithmetic.initial()
            part.velocity[:] = 0
            if request.checkpoint_folder:
                part.velocity[:] = read_state(folder, layout, ("velocity",))["velocity"][slice(*part.chunk)]
        part.hide()
        part.step = request.step
        return {"done": worker_pb2.Done()}

    def _evaluate(self, request: worker_pb2.EvaluateRequest) -> dict[str, Any]:
        part = self.ready(request.step)
        blocks = self._arithmetic.job.blocks
        reply = worker_pb2.EvaluateReply()
        parameters = part.leader.parameters

        def block(first: int, end: int) -> Sums | None:
            return self._arithmetic.block(parameters, first) if end - first == 1 else None

        for first, end in subtrees(0, blocks, *owned_shards(part.rank, len(part.nodes), blocks)):
            sums = fold(first, end, block, Sums.plus)
            assert sums is not None
            reply.sums.append(sums_message(first, end, sums))
        return {"evaluate": reply}

    def vector(self, name: str) -> F32:
        """A vector of its segment: the node's parameters, or its chunk of the velocity."""
        part = self.member()
        return part.leader.parameters if name == "parameters" else part.velocity
