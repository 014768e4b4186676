"""The agent's stream (lockstep.internal.v1.AgentService): one agent, its events applied and acknowledged after the commit."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any, final

import structlog
from sqlalchemy import Connection

from lockstep.contract.errors import UserError
from lockstep.internal.v1 import agent_service_pb2 as pb
from lockstep.internal.v1.agent_service_pb2_grpc import AgentServiceServicer
from services import VERSION, limits
from services.clock import Clock, for_people
from services.runs.apply import Gap, apply, lose
from services.runs.dispatch import Dispatcher
from services.store import Store
from services.store import jobs as rows
from services.wakeups import Wakeups

log = structlog.get_logger()
Requests = AsyncIterator[pb.ConnectRequest]


@final
class Link:
    """One connected agent."""

    def __init__(self, agent_id: str, now: int) -> None:
        self.agent_id = agent_id
        self.since = now
        self.synced = False
        self.last_wishes: pb.Wishes | None = None
        self.outbox: asyncio.Queue[pb.ConnectResponse | None] = asyncio.Queue()

    def refuse(self, reason: str) -> None:
        """Tells the agent that it is not wanted, and ends the stream."""
        self.outbox.put_nowait(pb.ConnectResponse(refusal=pb.Refusal(reason=reason)))
        self.outbox.put_nowait(None)


@final
class AgentDesk(AgentServiceServicer):
    """Serves Connect. `connected` and `since` say whether an agent is there, and since when it is, or is not."""

    def __init__(
        self, store: Store, dispatcher: Dispatcher, wakeups: Wakeups, clock: Clock, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self._store, self._dispatcher, self._wakeups, self._clock = store, dispatcher, wakeups, clock
        self._on_change = on_change
        self._link: Link | None = None
        self._gaps: dict[tuple[str, int, int], None] = {}  # events that were asked for, the oldest first
        self._greeted = False  # whether any agent was here since this server started
        self.since = clock()
        dispatcher.on_wishes = self.send_wishes

    @property
    def connected(self) -> bool:
        """Whether an agent is connected and has said what it runs."""
        return self._link is not None and self._link.synced

    def away_clause(self) -> str:
        """A clause for people about an agent that is away; empty while it is there or has only just gone."""
        if self.connected or self._clock() - self.since < limits.AGENT_AWAY_SHOWN_SECONDS * 1_000_000:
            return ""
        return f"the agent is unreachable since {for_people(self.since)}; runs go on, their events arrive when it is back"

    def send_wishes(self, wishes: pb.Wishes) -> None:
        """Sends the whole of the wishes, unless the agent has them already."""
        link = self._link
        if link is not None and link.synced and link.last_wishes != wishes:
            link.last_wishes = wishes
            link.outbox.put_nowait(pb.ConnectResponse(wishes=wishes))

    async def Connect(self, request_iterator: Requests, context: Any) -> AsyncIterator[pb.ConnectResponse]:
        """The one stream of the one agent."""
        async with asyncio.timeout(limits.AGENT_HELLO_SECONDS):
            first = await anext(request_iterator, None)
        hello = first.hello if first is not None else pb.Hello()
        refusal = self._refusal(hello)
        if refusal:
            log.warning("agent_refused", reason=refusal)
            yield pb.ConnectResponse(refusal=pb.Refusal(reason=refusal))
            return
        away_since = 0 if not self._greeted else self.since if self._link is None else self._clock()
        link = self._take_seat(hello)
        reader = asyncio.create_task(self._listen(link, request_iterator, away_since))
        try:
            while True:
                try:
                    async with asyncio.timeout(limits.AGENT_PULSE_SECONDS):
                        message = await link.outbox.get()
                except TimeoutError:
                    message = pb.ConnectResponse(pulse=pb.Pulse())
                if message is None:
                    break
                yield message
            if self._link is link:  # it was the reader that ended the stream
                await asyncio.wait([reader], timeout=limits.DRAIN_SECONDS)
            if reader.done() and not reader.cancelled() and (error := reader.exception()) is not None:
                raise error
        finally:
            reader.cancel()
            self._leave_seat(link)

    def _refusal(self, hello: pb.Hello) -> str:
        if not hello.agent_id:
            return "the first message must be Hello with the agent's id"
        if hello.version != VERSION:
            return f"the agent has version {hello.version}, the server {VERSION}; install the same on both"
        seated = self._link
        if seated is not None and seated.agent_id != hello.agent_id and not hello.take_over:
            since = for_people(seated.since)
            return f"an agent is connected since {since}; stop it, or start this one with --take-over, which fences it"
        return ""

    def _take_seat(self, hello: pb.Hello) -> Link:
        if self._link is not None:
            self._link.refuse("another agent took over" if self._link.agent_id != hello.agent_id else "you connected again")
        link = Link(hello.agent_id, self._clock())
        self._link, self._dispatcher.ready, self.since, self._greeted = link, False, link.since, True
        log.info("agent_connected", agent_id=hello.agent_id)
        self._on_change()
        return link

    def _leave_seat(self, link: Link) -> None:
        if self._link is link:
            self._link, self._dispatcher.ready, self.since = None, False, self._clock()
            log.warning("agent_gone", agent_id=link.agent_id)
            self._dispatcher.kick()
            self._on_change()

    async def _listen(self, link: Link, requests: Requests, away_since: int) -> None:
        """Takes in what the agent says, in order; ends the stream when it is silent or breaks the order."""
        await self._store.run(lambda connection: rows.excuse(connection, away_since, link.since))
        inbox: asyncio.Queue[pb.ConnectRequest | None] = asyncio.Queue(limits.AGENT_EVENTS)
        pump = asyncio.create_task(_pump(requests, inbox))
        try:
            while self._link is link:
                messages = [await inbox.get()]
                while not inbox.empty():
                    messages.append(inbox.get_nowait())
                for kind, group in itertools.groupby(messages, _kind):
                    if kind == "end":
                        return
                    if kind == "run_event":
                        await self._take_events(link, [message.run_event for message in group if message is not None])
                        continue
                    for message in group:
                        await self._take(link, message)
        finally:
            pump.cancel()
            link.outbox.put_nowait(None)

    async def _take(self, link: Link, message: pb.ConnectRequest | None) -> None:
        kind = _kind(message)
        if message is not None and kind == "capacity":
            self._dispatcher.capacity(message.capacity.nodes, message.capacity.problems)
        elif message is not None and kind == "synced":
            running = {(key.job_id, key.run_number) for key in message.synced.running}
            now = self._clock()
            lost = await self._store.run(lambda connection: lose_all_but(connection, running, now))
            self._wakeups.wake(lost)
            link.synced = True
            self._dispatcher.ready = True
            self._dispatcher.kick()
            self._on_change()

    async def _take_events(self, link: Link, batch: list[pb.RunEvent]) -> None:
        now = self._clock()
        try:
            changed = await self._store.run(lambda connection: apply(connection, batch, now, self._gap_allowed))
        except Gap as gap:
            self._gaps[gap.key] = None
            while len(self._gaps) > limits.AGENT_GAPS:
                del self._gaps[next(iter(self._gaps))]
            raise UserError.of("", "", f"{gap}; send again what was not acknowledged", "EVENTS_MISSING") from None
        for event in batch:
            self._gaps.pop(_event_key(event), None)
        last = {(event.run.job_id, event.run.run_number): event for event in batch}
        for event in last.values():
            acknowledge = pb.Acknowledge(run=event.run, sequence=event.sequence)
            link.outbox.put_nowait(pb.ConnectResponse(acknowledge=acknowledge))
        self._wakeups.wake(changed)
        if any(event.WhichOneof("event") in ("started", "ended", "recovering") for event in batch):
            self._dispatcher.kick()

    def _gap_allowed(self, event: pb.RunEvent) -> bool:
        """A gap that is there again after the agent sent all it has will never be filled."""
        return _event_key(event) in self._gaps


def _event_key(event: pb.RunEvent) -> tuple[str, int, int]:
    return event.run.job_id, event.run.run_number, event.sequence


def _kind(message: pb.ConnectRequest | None) -> str:
    return "end" if message is None else message.WhichOneof("message") or "nothing"


async def _pump(requests: Requests, inbox: asyncio.Queue[pb.ConnectRequest | None]) -> None:
    """Moves messages into a bounded queue; None at the end, or when nothing came for too long."""
    try:
        while True:
            async with asyncio.timeout(limits.AGENT_SILENCE_SECONDS):
                message = await anext(requests, None)
            await inbox.put(message)
            if message is None:
                return
    except Exception as error:
        log.warning("agent_stream_broken", error=f"{type(error).__name__}: {error}")
        await inbox.put(None)


def lose_all_but(connection: Connection, running: set[tuple[str, int]], now: int) -> list[str]:
    """Runs of the store that the agent does not run are lost; gives their jobs."""
    lost = []
    for run in rows.active_runs(connection):
        if (run.job_id, run.run_number) not in running:
            reason = "its coordinator is gone, or had not started yet: the connected agent does not run it"
            lose(connection, run.job_id, run.run_number, reason, now)
            lost.append(run.job_id)
    return lost
