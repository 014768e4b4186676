"""An agent that says what a test tells it to, over the real stream."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import grpc.aio

from lockstep.internal.v1 import agent_service_pb2 as pb
from lockstep.internal.v1 import agent_service_pb2_grpc
from lockstep.v1.cluster_service_pb2 import Node
from lockstep.v1.training_job_pb2 import Checkpoint, Point, Points, Progress, Result, WorkerInfo
from services import VERSION

DEADLINE_S = 5.0


class FakeAgent:
    """One connection to the agent's listener; `wishes` are the last that came."""

    def __init__(self, port: int, token: str, agent_id: str = "", take_over: bool = False, version: str = VERSION) -> None:
        self.agent_id = agent_id or uuid.uuid4().hex
        self._hello = pb.Hello(agent_id=self.agent_id, version=version, take_over=take_over)
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        stub: Any = agent_service_pb2_grpc.AgentServiceStub(self._channel)
        self._call = stub.Connect(metadata=(("authorization", f"Bearer {token}"),))
        self.wishes = pb.Wishes()
        self.wished = False
        self.acknowledged: dict[tuple[str, int], int] = {}
        self.refusal = ""
        self.ended = ""
        self._news = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None
        self._sequences: dict[tuple[str, int], int] = {}

    async def __aenter__(self) -> Self:
        await self._call.write(pb.ConnectRequest(hello=self._hello))
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._reader is not None
        self._call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()

    async def sync(self, slots: int = 2, running: Iterable[tuple[str, int]] = ()) -> None:
        """Says what runs and what there is, and waits for the wishes."""
        keys = [pb.RunKey(job_id=job_id, run_number=number) for job_id, number in running]
        await self._call.write(pb.ConnectRequest(synced=pb.Synced(running=keys)))
        nodes = [Node(node_id="n1", address="127.0.0.1", slots=slots)]
        await self._call.write(pb.ConnectRequest(capacity=pb.Capacity(nodes=nodes)))
        await self.until(lambda: self.wished)

    async def say(self, job_id: str, run_number: int, sequence: int | None = None, **event: Any) -> int:
        """Sends one event of a run, and waits until it is acknowledged."""
        key = (job_id, run_number)
        number = sequence if sequence is not None else self._sequences.get(key, 0) + 1
        self._sequences[key] = max(number, self._sequences.get(key, 0))
        run = pb.RunKey(job_id=job_id, run_number=run_number)
        await self._call.write(pb.ConnectRequest(run_event=pb.RunEvent(run=run, sequence=number, **event)))
        await self.until(lambda: self.acknowledged.get(key, 0) >= number)
        return number

    def resume_at(self, job_id: str, run_number: int, sequence: int) -> None:
        """The next event of the run has the number after this."""
        self._sequences[job_id, run_number] = sequence

    async def wish(self, job_id: str, run_number: int = 0) -> pb.RunWish:
        """Waits for a wish for the job, of that run if one is given."""

        def found() -> pb.RunWish | None:
            for wish in self.wishes.runs:
                if wish.order.job_id == job_id and run_number in (0, wish.order.run_number):
                    return wish
            return None

        await self.until(lambda: found() is not None)
        wish = found()
        assert wish is not None
        return wish

    async def until(self, condition: Any) -> None:
        """Waits for news that make the condition true."""
        async with self._news:
            async with asyncio.timeout(DEADLINE_S):
                await self._news.wait_for(condition)

    async def _read(self) -> None:
        try:
            async for message in self._call:
                async with self._news:
                    kind = message.WhichOneof("message")
                    if kind == "wishes":
                        self.wishes, self.wished = message.wishes, True
                    elif kind == "acknowledge":
                        key = (message.acknowledge.run.job_id, message.acknowledge.run.run_number)
                        self.acknowledged[key] = message.acknowledge.sequence
                    elif kind == "refusal":
                        self.refusal = message.refusal.reason
                    self._news.notify_all()
            ended = "closed"
        except grpc.aio.AioRpcError as error:
            ended = f"{error.code().name}: {error.details()}"
        async with self._news:
            self.ended = ended
            self._news.notify_all()


def started(step: int = 0, workers: int = 1) -> dict[str, Any]:
    """A run's first word."""
    members = [WorkerInfo(rank=rank, node="n1", pid=100 + rank, fingerprint="f" * 64) for rank in range(workers)]
    return {"started": pb.RunStarted(members=members, start_step=step, fingerprint="f" * 64)}


def progress(step: int, rows: int = 0, replayed: int = 0, skipped: int = 0) -> dict[str, Any]:
    """A run came further."""
    message = Progress(step=step, total_steps=240, epoch=1, loss=1.0 / step, applied_rows=rows or step, replayed_rows=replayed)
    message.skipped_steps = skipped
    return {"progress": pb.RunProgress(progress=message, computed_rows=[rows or step])}


def points(step: int, **values: float) -> dict[str, Any]:
    """Points of curves."""
    named = [Point(name=name, value=value) for name, value in values.items()]
    return {"points": Points(step=step, epoch=1, points=named)}


def checkpoint(step: int, validation_loss: float | None = None) -> dict[str, Any]:
    """A checkpoint is durable."""
    message = Checkpoint(step=step, weights_sha256=f"{step:064x}", size_bytes=10, validation_loss=validation_loss)
    return {"checkpoint": message}


def ended(
    outcome: pb.RunEnded.Outcome.ValueType,
    reason: str = "",
    step: int = 0,
    cause: pb.RunEnded.Cause.ValueType = pb.RunEnded.CAUSE_UNSPECIFIED,
) -> dict[str, Any]:
    """A run's last word."""
    result = Result(step=step, weights_sha256=f"{step:064x}") if outcome == pb.RunEnded.SUCCEEDED else None
    return {"ended": pb.RunEnded(outcome=outcome, reason=reason, last_step=step, result=result, cause=cause)}
