"""Workers as plain processes of this machine: the group of the fault tests, without Ray."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import structlog

from coordinator import framing, limits
from coordinator.exit_status import Cause, interpret, out_of_memory_kills
from coordinator.group.cluster import Cluster
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
from coordinator.group.host import HEARTBEAT
from coordinator.group.process import BEAT, REQUEST
from coordinator.preflight import Needs, lacks
from lockstep.v1 import cluster_service_pb2 as cluster

# The node of workers, unless others are given.
NODE = "local"

_READ_BYTES = 1 << 18
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@final
@dataclass(frozen=True, slots=True)
class LocalNode:
    """A node on this machine: its id, the address of its workers, and the command under which they are started.

    Workers of different nodes share no memory. The command may be that of a network namespace; it must become the worker.
    """

    node_id: str = NODE
    host: str = "127.0.0.1"
    under: tuple[str, ...] = ()


@final
class LocalCluster(Cluster):
    """This machine, with as many slots as it is told; there is nothing to attach to.

    To the outside it is one node; its groups get `environments` and `nodes`.
    """

    def __init__(
        self,
        slots: int,
        environments: Mapping[int, Mapping[str, str]] | None = None,
        nodes: Sequence[LocalNode] = (LocalNode(),),
    ) -> None:
        self._slots = slots
        self._environments, self._nodes = environments, nodes

    @contextmanager
    def attached(self) -> Iterator[None]:
        yield

    def nodes(self) -> list[cluster.Node]:
        return [cluster.Node(node_id=NODE, address="127.0.0.1", slots=self._slots)]

    def lacks(self, node_id: str, needs: Needs, deadline_s: float) -> list[str] | None:
        return lacks(needs)

    def prepare(self, nodes: Sequence[cluster.Node]) -> None:
        return None  # a process is started in no time

    def group(self, handler: str = SHARD_WORKER) -> WorkerGroup:
        return LocalGroup(handler, self._environments, self._nodes)


@final
class _Worker:
    """One process with its two pipes."""

    def __init__(self, handler: str, node: LocalNode, environment: Mapping[str, str]) -> None:
        self.node = node.node_id
        command = [*node.under, sys.executable, "-m", "coordinator.group.process", "--handler", handler]
        command += ["--node", node.node_id, "--host", node.host]
        self.process = subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD, **environment},
            bufsize=0,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stdout, False)
        self.frames = framing.Frames()
        self.writing = threading.Lock()
        self.there = False  # of a hired one: it has answered
        self.closed = False  # under `writing`: a descriptor's number is soon another file's

    def send(self, payload: bytes, deadline: float) -> bool:
        """Writes a request; False when the process is gone or does not take it in time."""
        frame = memoryview(framing.pack(REQUEST + payload))
        with self.writing:
            while frame:
                if self.closed:
                    return False
                try:
                    frame = frame[os.write(self.stdin, frame) :]
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        return False
                    select.select([], [self.stdin], [], limits.POLL_S)
                except BrokenPipeError:
                    return False
        return True

    def beat(self) -> None:
        """Writes a beat if there is room for it."""
        if not self.writing.acquire(blocking=False):
            return
        try:
            if not self.closed:
                os.write(self.stdin, framing.pack(BEAT))
        except (BlockingIOError, BrokenPipeError):
            pass  # full: the worker is stopped, and its deadline will say so; broken: the next call will see it
        finally:
            self.writing.release()

    def kill(self) -> None:
        """Ends the process and gives its pipes back."""
        self.process.kill()
        self.process.wait(limits.KILL_S)
        with self.writing:
            self.closed = True
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()


@final
class LocalGroup(WorkerGroup):
    """Plain processes with one BLAS thread each; `environments` adds variables to single ones, by the order of start.

    They are started on the `nodes` in turn.
    """

    def __init__(
        self,
        handler: str = SHARD_WORKER,
        environments: Mapping[int, Mapping[str, str]] | None = None,
        nodes: Sequence[LocalNode] = (LocalNode(),),
    ) -> None:
        self._handler = handler
        self._nodes = nodes
        self._environments = environments or {}
        self._workers: list[_Worker] = []
        self._hired: list[_Worker] = []
        self._failed: list[WorkerLoss] = []
        self._again_at = 0.0
        self._owing: set[_Worker] = set()
        self._started = 0
        self._out_of_memory = 0

    @property
    def size(self) -> int:
        return len(self._workers)

    @property
    def here(self) -> str:
        return NODE

    def pids(self) -> list[int]:
        """The processes, by rank."""
        return [worker.process.pid for worker in self._workers]

    def start(self, workers: int, deadline_s: float, interrupted: Callable[[], bool] = never) -> None:
        self._out_of_memory = out_of_memory_kills()
        try:
            for _ in range(workers):
                self._workers.append(self._new_worker())
        except OSError as error:
            self.close()
            raise GroupStartFailed(f"a worker process could not be started: {error}", outside=False) from error

    def _new_worker(self) -> _Worker:
        environment = self._environments.get(self._started, {})
        worker = _Worker(self._handler, self._nodes[self._started % len(self._nodes)], environment)
        self._started += 1
        return worker

    def call(
        self,
        requests: Mapping[int, bytes],
        deadline_s: float,
        interrupted: Callable[[], bool] = never,
        alarm: Callable[[bytes], float] = no_alarm,
    ) -> Replies:
        deadline = time.monotonic() + deadline_s
        for rank, request in requests.items():
            self._workers[rank].send(request, deadline)  # one that is gone is seen below, by the end of its replies
        replies, losses, alarmed = self._collect(set(requests), deadline, interrupted, alarm)
        owing = sorted(set(requests) - set(replies) - set(losses))
        if not losses and not alarmed:
            losses.update({rank: self._loss(rank, Cause.LATE, f"did not answer within {deadline_s:.0f} s") for rank in owing})
        self._owing = {self._workers[rank] for rank in owing}
        return Replies(replies, tuple(losses[rank] for rank in sorted(losses)))

    def settle(self, deadline_s: float, interrupted: Callable[[], bool] = never) -> Replies:
        owing = {rank for rank, worker in enumerate(self._workers) if worker in self._owing}
        replies, losses, _ = self._collect(owing, time.monotonic() + deadline_s, interrupted, no_alarm, grace=False)
        for rank in owing - set(replies) - set(losses):
            losses[rank] = self._loss(rank, Cause.LATE, f"did not answer within {deadline_s:.0f} s")
        self._owing.clear()
        return Replies(replies, tuple(losses[rank] for rank in sorted(losses)))

    def _collect(
        self,
        waiting: set[int],
        deadline: float,
        interrupted: Callable[[], bool],
        alarm: Callable[[bytes], float],
        grace: bool = True,
    ) -> tuple[dict[int, bytes], dict[int, WorkerLoss], bool]:
        """Answers and losses by rank, and whether there was an alarm; until all came, the deadline, or a loss and the grace."""
        poll = select.poll()
        rank_of = {self._workers[rank].stdout: rank for rank in waiting}
        for fd in rank_of:
            poll.register(fd, select.POLLIN)
        replies: dict[int, bytes] = {}
        losses: dict[int, WorkerLoss] = {}
        due = AnswersDue(deadline)
        while waiting:
            if interrupted():
                raise Interrupted
            left_s = due.end - time.monotonic()
            if left_s <= 0:
                break
            for fd, _ in poll.poll(min(left_s, limits.POLL_S) * 1000):
                rank = rank_of[fd]
                try:
                    data = os.read(fd, _READ_BYTES)
                    for reply in self._workers[rank].frames.feed(data):
                        replies[rank] = reply
                    lost = not data
                except framing.FrameError as error:
                    lost = True
                    losses[rank] = self._loss(rank, Cause.CRASHED, f"sent what is no reply: {error}")
                if lost and rank not in losses:
                    losses[rank] = self._dead(rank)
                if rank in replies or lost:
                    poll.unregister(fd)
                    waiting = waiting - {rank}
                if rank in replies:
                    due.heard(time.monotonic(), alarm(replies[rank]))
                if grace and lost:
                    due.lost(time.monotonic())
        return replies, losses, due.alarmed

    def _dead(self, rank: int) -> WorkerLoss:
        try:
            returncode = self._workers[rank].process.wait(limits.KILL_S)
        except subprocess.TimeoutExpired:
            return self._loss(rank, Cause.UNREACHABLE, "closed its pipe and did not end")
        return self._loss(rank, *interpret(returncode, out_of_memory_kills() > self._out_of_memory))

    def _loss(self, rank: int, cause: Cause, text: str) -> WorkerLoss:
        worker = self._workers[rank]
        return WorkerLoss(rank, worker.node, worker.process.pid, cause, text)

    def keep(self, ranks: Sequence[int]) -> None:
        kept = [self._workers[rank] for rank in ranks]
        dropped = [worker for worker in self._workers if worker not in kept]
        self._workers = kept
        for worker in dropped:
            worker.kill()
        self._out_of_memory = out_of_memory_kills()

    def hire(self, workers: int) -> None:
        while len(self._hired) > workers:
            self._hired.pop().kill()
        try:
            while len(self._hired) < workers and time.monotonic() >= self._again_at:
                self._hired.append(self._new_worker())
                self._hired[-1].send(HEARTBEAT, time.monotonic() + limits.POLL_S)  # its answer says that it is there
        except OSError as error:
            structlog.get_logger().warning("no worker process could be started", reason=str(error))

    def arrived(self) -> int:
        for worker in list(self._hired):
            try:
                data = os.read(worker.stdout, _READ_BYTES)
                worker.there = worker.there or bool(worker.frames.feed(data))
            except BlockingIOError:
                continue
            if not data:
                self._hired.remove(worker)
                code = worker.process.wait(limits.KILL_S)
                worker.kill()
                self._failed.append(WorkerLoss(self.size, worker.node, worker.process.pid, *interpret(code)))
                self._again_at = time.monotonic() + limits.HIRE_AGAIN_S
        return sum(worker.there for worker in self._hired)

    def failed(self) -> Sequence[WorkerLoss]:
        failed, self._failed = self._failed, []
        return failed

    def welcome(self) -> None:
        self._workers += [worker for worker in self._hired if worker.there]
        self._hired = [worker for worker in self._hired if not worker.there]

    def beat(self) -> None:
        for worker in [*self._workers, *self._hired]:
            worker.beat()

    def close(self) -> None:
        workers = [*self._workers, *self._hired]
        self._workers, self._hired = [], []
        self._owing.clear()
        for worker in workers:
            worker.kill()
