"""The agent's stream to the API server: dialled again and again, events up in order, wishes and acknowledgements down."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import grpc
import grpc.aio
import structlog

from coordinator import limits
from coordinator.children import Warm
from coordinator.outbox import Outbox, run_id
from coordinator.reconciler import Reconciler
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import agent_service_pb2_grpc

_OPTIONS = [
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES),
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", int(limits.RECONNECT_FIRST_S * 1000)),
    ("grpc.min_reconnect_backoff_ms", int(limits.RECONNECT_FIRST_S * 1000)),
    ("grpc.max_reconnect_backoff_ms", int(limits.RECONNECT_LAST_S * 1000)),
]


@final
class Refused(Exception):
    """The server does not want this agent; the text says why and what to do."""


@final
class Connection:
    """One agent's connection. `keep` runs until the agent is refused."""

    def __init__(
        self,
        server: str,
        token_file: Path,
        take_over: bool,
        outbox: Outbox,
        reconciler: Reconciler,
        warm: Warm,
        changed: asyncio.Event,
    ) -> None:
        self._server, self._token_file, self._take_over = server, token_file, take_over
        self._outbox, self._reconciler, self._warm, self._changed = outbox, reconciler, warm, changed
        self._agent_id = uuid.uuid4().hex
        self._log = structlog.get_logger().bind(process="agent", server=server)

    async def keep(self) -> None:
        """Connects for ever. Raises Refused."""
        backoff_s = limits.RECONNECT_FIRST_S
        while True:
            began = asyncio.get_running_loop().time()
            try:
                async with grpc.aio.insecure_channel(self._server, options=_OPTIONS) as channel:
                    await self._session(channel)
            except (grpc.aio.AioRpcError, OSError, TimeoutError, asyncio.InvalidStateError) as error:
                said = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else str(error)
                self._log.warning("not connected", reason=said or "the stream was silent for too long", again_in_s=backoff_s)
            if asyncio.get_running_loop().time() - began > limits.PULSE_S:
                backoff_s = limits.RECONNECT_FIRST_S
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, limits.RECONNECT_LAST_S)

    async def _session(self, channel: grpc.aio.Channel) -> None:
        """One stream, from Hello to its end."""
        token = self._token_file.read_text().strip()
        stub: Any = agent_service_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
        call = stub.Connect(metadata=(("authorization", f"Bearer {token}"),))
        await call.write(
            agent.ConnectRequest(
                hello=agent.Hello(agent_id=self._agent_id, version=version("lockstep-server"), take_over=self._take_over)
            )
        )
        sending = asyncio.ensure_future(self._send(call))
        receiving = asyncio.ensure_future(self._receive(call))
        try:
            done, _ = await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            # When both ended, what was received says more: a refusal.
            await (receiving if receiving in done or not sending.done() else self._said(sending, receiving))
        finally:
            sending.cancel()
            receiving.cancel()
            call.cancel()
            # What the one that was not waited for met is retrieved, and its work is over before the next stream begins.
            await asyncio.gather(sending, receiving, return_exceptions=True)

    async def _said(self, sending: asyncio.Task[None], receiving: asyncio.Task[None]) -> None:
        """A stream that can no longer be written: waits for what the server said, then for the writer's error."""
        await asyncio.wait({receiving}, timeout=1.0)
        if receiving.done():
            receiving.result()
        sending.result()

    async def _send(self, call: Any) -> None:
        loop = asyncio.get_running_loop()
        self._outbox.rewind()
        await self._reconciler.close_spools()
        synced, told, pulse_at = False, None, loop.time() + limits.PULSE_S
        while True:
            for event in self._outbox.unsent():
                await call.write(agent.ConnectRequest(run_event=event))
            if not synced and self._outbox.caught_up():
                await call.write(agent.ConnectRequest(synced=agent.Synced(running=self._reconciler.running())))
                synced = True
                self._log.info("connected")
            if synced and self._warm.capacity is not None and self._warm.capacity != told:
                told = self._warm.capacity
                await call.write(agent.ConnectRequest(capacity=told))
            if loop.time() >= pulse_at:
                pulse_at = loop.time() + limits.PULSE_S
                await call.write(agent.ConnectRequest(pulse=agent.Pulse()))
            await asyncio.sleep(limits.SPOOL_POLL_S)

    async def _receive(self, call: Any) -> None:
        async for response in _until_silent(call):
            kind = response.WhichOneof("message")
            if kind == "wishes":
                self._reconciler.wish(response.wishes)
            elif kind == "acknowledge":
                if self._outbox.acknowledge(response.acknowledge):
                    self._reconciler.acknowledged_end(run_id(response.acknowledge.run))
            elif kind == "refusal":
                raise Refused(response.refusal.reason)


async def _until_silent(call: Any) -> AsyncIterator[agent.ConnectResponse]:
    """The server's messages; ends with the stream, raises TimeoutError when nothing came for too long."""
    while True:
        async with asyncio.timeout(limits.SILENCE_S):
            response = await call.read()
        if response is grpc.aio.EOF:
            break
        yield response
    code = await call.code()
    if code != grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code, call.initial_metadata() or grpc.aio.Metadata(), grpc.aio.Metadata(), await call.details()
        )
