"""The workers of one group, talked to in messages: each request goes to all, each answer is checked."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, final

from coordinator import limits
from coordinator.controller import Controller
from coordinator.group.group import WorkerGroup
from coordinator.joining import Admitted, admit
from coordinator.recovery import Corrupted, GroupFailed
from coordinator.snapshots import Parts, Snapshot
from coordinator.stretches import Stretch
from lockstep.contract.errors import InternalError
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import worker_pb2
from lockstep.v1 import training_job_pb2 as job
from worker import failpoints
from worker.collective.handshake import COORDINATOR, Membership
from worker.failpoints import failpoint
from worker.limits import STEP_DEADLINE_FACTOR
from worker.state_transfer import TransferError, fetch_state, give_state

_Request = worker_pb2.WorkerRequest


@final
class Members:
    """A started group that is asked for steps. Every method raises GroupFailed when a worker is lost or refuses, Interrupted
    when `interrupted` says so."""

    def __init__(
        self,
        group: WorkerGroup,
        order: agent.RunOrder,
        files_folder: Path,
        group_number: int,
        interrupted: Callable[[], bool],
        step: int = 0,
    ) -> None:
        self._group = group
        self._order = order
        self._files_folder = files_folder
        self._group_number = group_number
        self._member = Membership(secrets.token_bytes(32), order.run_number, group_number, COORDINATOR)
        self._interrupted = interrupted
        self._joined: list[worker_pb2.JoinReply] = []
        self._prepared: list[worker_pb2.PrepareReply] = []
        self._step = step  # the last one that was applied, or that the group begins after
        self._asked = 0  # the last one that was asked for since the state was last put in
        self.fingerprint = ""

    def join(self, required: str, minimum: int) -> Admitted:
        """Has every worker prove itself and goes on with those that fit. Raises joining.NotFitting."""
        requests = [_Request(join=worker_pb2.JoinRequest(failpoints=self._points(rank))) for rank in range(self._group.size)]
        joined = [reply.join for reply in self._ask("proving themselves", requests, "join", limits.JOIN_S)]
        admitted = admit(joined, required, minimum)
        self._group.keep(admitted.ranks)
        self._joined = [joined[rank] for rank in admitted.ranks]
        self.fingerprint = admitted.fingerprint
        return admitted

    def _points(self, rank: int) -> list[str]:
        return failpoints.of_worker(self._order.failpoints, self._order.run_number, self._group_number, rank)

    def prepare(self) -> None:
        """Builds the model on every worker and links them."""
        node_ids = [reply.node_id for reply in self._joined]
        requests = [
            _Request(
                prepare=worker_pb2.PrepareRequest(
                    order=self._order,
                    files_folder=str(self._files_folder),
                    group_number=self._group_number,
                    group_key=self._member.key,
                    rank=rank,
                    node_ids=node_ids,
                    step_deadline_floor_s=limits.STEP_DEADLINE_FLOOR_S,
                    first_step_deadline_s=limits.FIRST_STEP_DEADLINE_S,
                )
            )
            for rank in range(len(node_ids))
        ]
        replies = self._ask("building the model", requests, "prepare", limits.PREPARE_S)
        self._prepared = [reply.prepare for reply in replies]
        connect = _Request(connect=worker_pb2.PeersRequest(peers=self._prepared))
        self._ask("connecting to each other", connect, "done", limits.CONNECT_S)

    def restore(self, step: int, checkpoint_folder: str) -> None:
        """Has the workers stand at a checkpoint's step, or at the initial weights for step 0, wherever they stood."""
        self._step = self._asked = step
        restore = _Request(restore=worker_pb2.RestoreRequest(step=step, checkpoint_folder=checkpoint_folder))
        self._ask("reading the checkpoint" if checkpoint_folder else "drawing the weights", restore, "done", limits.RESTORE_S)

    def give(self, snapshot: Snapshot) -> None:
        """Puts the state of a snapshot into the workers. Raises Corrupted where it is not what it was."""
        snapshot.check()
        self._step = self._asked = snapshot.step
        receive = _Request(receive=worker_pb2.ReceiveRequest(step=snapshot.step))
        replies = self._ask("taking the snapshot", receive, "receive", limits.JOIN_S)
        for rank, reply in enumerate(replies):
            try:
                give_state(
                    snapshot.vectors,
                    snapshot.step,
                    reply.receive,
                    self._prepared[rank],
                    self._shares_memory(rank),
                    self._member,
                    rank,
                )
            except TransferError as error:
                self._blame(rank, "taking the snapshot", error)
        restore = _Request(restore=worker_pb2.RestoreRequest(step=snapshot.step, received=True))
        self._ask("taking the snapshot", restore, "done", limits.RESTORE_S)

    def take(self, stretch: Stretch, controller: Controller, step_s: float) -> list[worker_pb2.StretchReply]:
        """Has the workers take a stretch of steps, which lately took `step_s` each; the answers by rank.

        Raises Corrupted when the workers' parameters differ afterwards.
        """
        asked = worker_pb2.StretchRequest(
            first_step=stretch.first,
            last_step=stretch.last,
            rate_factor=controller.rate_factor,
            skipped_steps=controller.skipped_steps,
            skipped_in_a_row=controller.skipped_in_a_row,
        )
        request = _Request(stretch=asked)
        failpoint("stretch.before_hand_out", stretch.first)
        deadline_s = 2 * limits.STEP_DEADLINE_FLOOR_S + STEP_DEADLINE_FACTOR * step_s * stretch.steps
        self._asked = stretch.last
        if step_s <= 0:
            deadline_s += limits.FIRST_STEP_DEADLINE_S
        replies = [
            reply.stretch
            for reply in self._ask(f"taking steps {stretch.first} to {stretch.last}", request, "stretch", deadline_s)
        ]
        ends = {reply.step for reply in replies}
        if len(ends) > 1:
            raise InternalError(f"workers ended a stretch at different steps: {sorted(ends)}")
        self._step = ends.pop()
        failpoint("stretch.when_reported", self._step)
        digests = {reply.parameters_crc32c for reply in replies}
        if len(digests) > 1:
            said = ", ".join(f"{self.name(rank)} {reply.parameters_crc32c:08x}" for rank, reply in enumerate(replies))
            raise Corrupted(
                f"after step {self._step} the workers' parameters differ (CRC-32C: {said}); memory or a link is not sound"
            )
        return replies

    def evaluate(self, interrupted: Callable[[], bool]) -> list[worker_pb2.EvaluateReply]:
        """Sums over all blocks of validation rows, and counts, at the last step.

        Once interrupted, the group can only be closed.
        """
        request = _Request(evaluate=worker_pb2.EvaluateRequest(step=self._step))
        replies = self._ask("evaluating", request, "evaluate", limits.EVALUATE_S, interrupted)
        return [reply.evaluate for reply in replies]

    def check_gradient(self, tensor: int) -> worker_pb2.GradientCheckReply:
        """Has the one worker compare the gradient of a learned tensor with differences of the loss."""
        request = _Request(gradient_check=worker_pb2.GradientCheckRequest(tensor=tensor))
        (reply,) = self._ask(f"checking the gradient of tensor {tensor}", request, "gradient_check", limits.GRADIENT_CHECK_S)
        return reply.gradient_check

    def state(self) -> list[Parts]:
        """The ranges of the state that each worker answers for, copied."""
        failpoint("snapshot.when_begun", self._step)
        request = _Request(snapshot=worker_pb2.SnapshotRequest(step=self._step))
        replies = self._ask("offering their state", request, "snapshot", limits.SNAPSHOT_S)
        return [self._fetch(rank, reply.snapshot) for rank, reply in enumerate(replies)]

    def _fetch(self, rank: int, offered: worker_pb2.SnapshotReply) -> Parts:
        try:
            return fetch_state(offered, self._prepared[rank], self._shares_memory(rank), self._member, rank)
        except TransferError as error:
            self._blame(rank, "offering their state", error)

    def _blame(self, rank: int, doing: str, error: TransferError) -> NoReturn:
        # Whoever is dead is named with its end; that its state could not be moved is only the consequence.
        self._ask(doing, _Request(heartbeat=worker_pb2.HeartbeatRequest()), "done", limits.JOIN_S)
        failure = worker_pb2.Failure(kind=worker_pb2.Failure.PEER, text=f"{self.name(rank)}: {error}")
        raise GroupFailed(self._step, doing, (), {rank: failure}, size=self._group.size) from error

    def _shares_memory(self, rank: int) -> bool:
        return self._joined[rank].node_id == self._group.here

    def infos(self) -> list[job.WorkerInfo]:
        """The workers as people see them, by rank."""
        return [
            job.WorkerInfo(
                rank=rank,
                node=joined.node_id,
                pid=joined.pid,
                fingerprint=joined.fingerprint,
                first_shard=prepared.first_shard,
                end_shard=prepared.end_shard,
            )
            for rank, (joined, prepared) in enumerate(zip(self._joined, self._prepared, strict=True))
        ]

    def short_of_memory(self) -> list[str]:
        """A sentence for each node whose free memory is below what its workers are expected to hold."""
        sentences = []
        for node in sorted({joined.node_id for joined in self._joined}):
            here = [joined for joined in self._joined if joined.node_id == node]
            free, needed = min(joined.memory_bytes for joined in here), len(here) * self._order.plan.worker_memory_bytes
            if free and needed > free:
                sentences.append(
                    f"node {node[:12]} has {free >> 20} MiB of memory and its {len(here)} workers may need {needed >> 20} MiB; "
                    "use fewer workers there, smaller batches, or a node with more memory"
                )
        return sentences

    def name(self, rank: int) -> str:
        """A worker as people call it."""
        node = self._joined[rank].node_id if rank < len(self._joined) else ""
        return f"worker {rank} (node {node[:12]})" if node else f"worker {rank}"

    def _ask(
        self,
        doing: str,
        requests: _Request | Sequence[_Request],
        expected: str,
        deadline_s: float,
        interrupted: Callable[[], bool] | None = None,
    ) -> list[worker_pb2.WorkerReply]:
        size = self._group.size
        by_rank = [requests] * size if isinstance(requests, _Request) else requests
        sent = {rank: request.SerializeToString() for rank, request in enumerate(by_rank)}
        answered = self._group.call(sent, deadline_s, interrupted or self._interrupted, _grace_s)
        replies = {rank: worker_pb2.WorkerReply.FromString(reply) for rank, reply in answered.by_rank.items()}
        failures = {rank: reply.failure for rank, reply in sorted(replies.items()) if reply.HasField("failure")}
        if answered.losses or failures:
            silent = sorted(set(sent) - set(replies) - {loss.rank for loss in answered.losses})
            taken = max((reply.stretch.step for reply in replies.values()), default=0)
            raise GroupFailed(self._step, doing, answered.losses, failures, silent, size, deadline_s, self._asked, taken)
        for rank, reply in replies.items():
            if reply.WhichOneof("reply") != expected:
                raise InternalError(f"worker {rank} answered {reply.WhichOneof('reply')} where {expected} was asked")
        return [replies[rank] for rank in range(size)]


def _grace_s(reply: bytes) -> float:
    """How long the others are awaited after this answer; 0: as long as before."""
    message = worker_pb2.WorkerReply.FromString(reply)
    return max(limits.LOSS_GRACE_S, message.failure.patience_s) if message.HasField("failure") else 0.0
