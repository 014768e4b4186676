"""A TCP proxy between nodes that spoils links: late, in single bytes, held, reset. It changes no byte."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from enum import IntEnum
from types import TracebackType
from typing import Any, Self

Address = tuple[str, int]
READ_BYTES = 1 << 16
_AHEAD = 256  # reads that may be on their way
_WAIT_S = 10.0


class Way(IntEnum):
    """The two ways of a connection: from who dialed to who was dialed, and back."""

    THERE = 0
    BACK = 1


BOTH_WAYS = tuple(Way)


class Proxy:
    """Forwards connections in a thread of its own.

    `delay_s` is how late everything arrives; `piece_bytes` how much is sent at a time; `buffer_bytes` what the proxy's sockets
    take in, so that the sender's writes are short (0: the kernel's choice).
    """

    def __init__(self, delay_s: float = 0.0, piece_bytes: int = READ_BYTES, buffer_bytes: int = 0) -> None:
        self._delay_s, self._piece_bytes, self._buffer_bytes = delay_s, piece_bytes, buffer_bytes
        self.forwarded_bytes = 0
        self._due: tuple[int, Callable[[], None]] | None = None
        self._servers: dict[Address, tuple[socket.socket, asyncio.Task[None]]] = {}
        self._relays: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._open = {way: asyncio.Event() for way in Way}
        for way in Way:
            self._open[way].set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_S)
        self._loop.close()

    def forward(self, listen: Address, target: Address) -> None:
        """Forwards what dials `listen` to `target`, in place of whatever was forwarded from there."""
        self._do(self._forward(listen, target))

    def after(self, count: int, act: Callable[[], None]) -> None:
        """Acts once, when so many more bytes were forwarded: mostly in the midst of a message."""
        self._due = (self.forwarded_bytes + count, act)

    def hold(self, for_s: float | None = None, ways: Sequence[Way] = BOTH_WAYS) -> None:
        """Nothing comes through any more that way, and nobody is told; for a time, or until `let_go`."""
        for way in ways:
            self._loop.call_soon_threadsafe(self._open[way].clear)
            if for_s is not None:
                self._loop.call_soon_threadsafe(self._loop.call_later, for_s, self._open[way].set)

    def let_go(self) -> None:
        """What was held goes on its way."""
        for way in Way:
            self._loop.call_soon_threadsafe(self._open[way].set)

    def reset(self) -> None:
        """Breaks all connections: both ends get an RST."""
        self._loop.call_soon_threadsafe(lambda: [relay.cancel() for relay in self._relays])

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_WAIT_S)

    async def _forward(self, listen: Address, target: Address) -> None:
        if listen in self._servers:
            await self._end_server(listen)
        server = socket.create_server(listen)
        server.setblocking(False)
        self._servers[listen] = server, asyncio.create_task(self._accept(server, target))

    async def _accept(self, server: socket.socket, target: Address) -> None:
        while True:
            here, _ = await self._loop.sock_accept(server)
            relay = asyncio.create_task(self._relay(here, target))
            self._relays.add(relay)
            relay.add_done_callback(self._relays.discard)

    async def _relay(self, here: socket.socket, target: Address) -> None:
        there = socket.socket()
        try:
            for each in (here, there):
                each.setblocking(False)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._buffer_bytes:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
            await self._loop.sock_connect(there, target)
            async with asyncio.TaskGroup() as pipes:
                for way, source, sink in ((Way.THERE, here, there), (Way.BACK, there, here)):
                    ahead: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_AHEAD)
                    pipes.create_task(self._read(source, ahead))
                    pipes.create_task(self._write(ahead, sink, way))
        except* OSError:
            pass  # an end is gone; the other hears of it
        except* asyncio.CancelledError:
            for each in (here, there):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed with an RST
        finally:
            here.close()
            there.close()

    async def _read(self, source: socket.socket, ahead: asyncio.Queue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            data = await self._loop.sock_recv(source, self._buffer_bytes or READ_BYTES)
            await ahead.put((self._loop.time() + self._delay_s, data))

    async def _write(self, ahead: asyncio.Queue[tuple[float, bytes]], sink: socket.socket, way: Way) -> None:
        data = b"-"
        while data:
            due, data = await ahead.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._send(sink, data, way)
        sink.shutdown(socket.SHUT_WR)

    async def _send(self, sink: socket.socket, data: bytes, way: Way) -> None:
        while data:
            await self._open[way].wait()
            most = self._piece_bytes
            if self._due is not None:
                most = min(most, max(1, self._due[0] - self.forwarded_bytes))
            piece, data = data[:most], data[most:]
            await self._loop.sock_sendall(sink, piece)
            self.forwarded_bytes += len(piece)
            if self._due is not None and self.forwarded_bytes >= self._due[0]:
                act, self._due = self._due[1], None
                act()
                await asyncio.sleep(0)  # what it asked of the loop is done before the next piece

    async def _end_server(self, listen: Address) -> None:
        server, accepting = self._servers.pop(listen)
        accepting.cancel()
        with suppress(asyncio.CancelledError):
            await accepting
        server.close()

    async def _close(self) -> None:
        for listen in list(self._servers):
            await self._end_server(listen)
        relays = list(self._relays)
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)
