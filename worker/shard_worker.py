"""The worker as its coordinator sees it: requests in, replies out, as bytes; whatever happens becomes a reply."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, final

from google.protobuf.message import DecodeError
from threadpoolctl import threadpool_limits

from lockstep.contract.errors import InternalError
from lockstep.internal.v1.worker_pb2 import (
    Done,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    GradientCheckReply,
    GradientCheckRequest,
    JoinReply,
    JoinRequest,
    PeersRequest,
    PrepareReply,
    PrepareRequest,
    ReceiveReply,
    ReceiveRequest,
    RestoreRequest,
    SnapshotReply,
    SnapshotRequest,
    StretchReply,
    StretchRequest,
    WorkerReply,
    WorkerRequest,
)
from worker import failpoints
from worker.assignment import Assignment
from worker.collective.peers import peer_name
from worker.failpoints import failpoint
from worker.failures import failure_of
from worker.fingerprint import fingerprint
from worker.memory import usable_memory_bytes


@final
class ShardWorker:
    """One worker. `handle` takes one request at a time; a heartbeat may come beside it, from another thread.

    `unfit` says why it has not the kernels that it was to have; it says so on joining.
    """

    def __init__(self, node_id: str, host: str, unfit: str = "") -> None:
        self._node_id, self._host, self._unfit = node_id, host, unfit
        # Two threads of the BLAS give other bits than one; the limit holds as long as this object does.
        self._one_thread = threadpool_limits(limits=1)
        self._assignment: Assignment | None = None
        self._answers: dict[str, tuple[str, Callable[[Any], Any]]] = {
            "join": ("join", self._join),
            "prepare": ("prepare", self._prepare),
            "connect": ("done", self._connect),
            "receive": ("receive", self._receive),
            "restore": ("done", self._restore),
            "stretch": ("stretch", self._stretch),
            "evaluate": ("evaluate", self._evaluate),
            "snapshot": ("snapshot", self._snapshot),
            "gradient_check": ("gradient_check", self._check_gradient),
            "heartbeat": ("done", lambda request: Done()),
        }

    def handle(self, request: bytes) -> bytes:
        """A WorkerRequest in, a WorkerReply out; never raises: a fault becomes a Failure."""
        try:
            message = WorkerRequest.FromString(request)
        except DecodeError as error:
            failure = Failure(kind=Failure.INTERNAL, text=f"a request of {len(request)} bytes cannot be read: {error}")
            return WorkerReply(failure=failure).SerializeToString()
        kind = message.WhichOneof("request")
        try:
            if kind is None:
                raise InternalError("a request without a kind")
            field, answer = self._answers[kind]
            return WorkerReply(**{field: answer(getattr(message, kind))}).SerializeToString()
        except Exception as error:  # the edge of the process: nothing may pass it but a reply
            return WorkerReply(failure=self._fail(error)).SerializeToString()

    def _fail(self, error: Exception) -> Failure:
        assignment = self._assignment
        if assignment is None:
            return failure_of(error, f"a worker on node {self._node_id}", 0)
        assignment.abandon(error)
        return failure_of(error, peer_name(assignment.rank, assignment.nodes), assignment.step)

    def close(self) -> None:
        """Gives back port, links and memory."""
        if self._assignment is not None:
            self._assignment.release()
            self._assignment = None

    def _join(self, request: JoinRequest) -> JoinReply:
        failpoints.arm(request.failpoints)
        failpoint("worker.when_joining")
        value, explanation = fingerprint()
        return JoinReply(
            pid=os.getpid(),
            fingerprint=value,
            explanation=explanation,
            host=socket.gethostname(),
            memory_bytes=usable_memory_bytes(),
            node_id=self._node_id,
            unfit=self._unfit,
        )

    def _prepare(self, request: PrepareRequest) -> PrepareReply:
        self.close()
        self._assignment = Assignment(request, self._host)
        return self._assignment.endpoint(os.getpid())

    def _connect(self, request: PeersRequest) -> Done:
        self._prepared().connect(request.peers)
        return Done()

    def _receive(self, request: ReceiveRequest) -> ReceiveReply:
        return self._prepared().receive(request.step)

    def _restore(self, request: RestoreRequest) -> Done:
        if request.received:
            self._prepared().restore_received(request.step)
        else:
            self._prepared().restore(request.step, request.checkpoint_folder)
        return Done()

    def _stretch(self, request: StretchRequest) -> StretchReply:
        assignment = self._prepared()
        if assignment.stretches is None or request.first_step != assignment.step + 1:
            raise InternalError(f"a stretch from step {request.first_step} was asked after step {assignment.step}")
        assignment.hide()
        return assignment.stretches.run(request)

    def _evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        assignment = self._prepared()
        self._check_step(request.step)
        assert assignment.evaluation is not None
        failpoint("evaluation.when_begun", request.step)
        return assignment.evaluation.run()

    def _snapshot(self, request: SnapshotRequest) -> SnapshotReply:
        self._check_step(request.step)
        return self._prepared().snapshot(request.step)

    def _check_gradient(self, request: GradientCheckRequest) -> GradientCheckReply:
        self._check_step(0)
        return self._prepared().gradient_check().tensor(request.tensor)

    def _prepared(self) -> Assignment:
        if self._assignment is None:
            raise InternalError("this worker belongs to no group: prepare comes first")
        return self._assignment

    def _check_step(self, step: int) -> None:
        assignment = self._prepared()
        if assignment.stretches is None or assignment.step != step:
            raise InternalError(f"the state after step {step} was asked; the last applied step is {assignment.step}")
