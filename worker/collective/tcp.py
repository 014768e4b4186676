"""Links between nodes over TCP: frames of a header, parts of the length that the receiver expects, and their checksum."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import final

from worker.checksum import word_sum
from worker.collective.links import Links, Message
from worker.collective.peers import PeerError, peer_name

# magic, message, rank (ABORT: whom the sender misses), step, length of the parts in bytes
HEADER = struct.Struct("!4sHxxIQQ")
MAGIC = b"LKF1"

# The sum of the words of the parts, behind them; TCP's own checksum lets one damaged segment in 65,536 pass.
CHECKSUM = struct.Struct("!I")

# The shortest wait for other nodes has 1.25 of the deadline, the longest, of the other end, 2 (`Deadlines.for_other_nodes_s`).
_PATIENCE = 0.75

_MOST_PARTS = 64  # buffers of one system call; IOV_MAX is 1,024


def header(message: Message, rank: int, step: int, length: int) -> bytes:
    """The head of a frame."""
    return HEADER.pack(MAGIC, int(message), rank, step, length)


def prepare_socket(connection: socket.socket) -> None:
    """Sets what all links want: frames go out at once, and a dead host is noticed."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


@final
class _Link:
    """One connection: what is to go out, and what is expected, each in order. Never blocks."""

    def __init__(self, rank: int, name: str, connection: socket.socket) -> None:
        self.rank, self.name, self.socket = rank, name, connection
        connection.setblocking(False)
        self.out: deque[memoryview] = deque()  # what is left of the frame under way
        self.waiting: deque[list[memoryview]] = deque()  # frames that have not begun
        self.expected: deque[tuple[Message, int, Sequence[memoryview]]] = deque()
        self.sent_bytes = self.received_bytes = 0
        self._head = memoryview(bytearray(HEADER.size))
        self._got = 0  # bytes of the header that came
        self._parts: deque[memoryview] = deque()  # what the frame under way still fills, its checksum included
        self._checksum = memoryview(bytearray(CHECKSUM.size))

    def push(self) -> bool:
        """Sends what the socket takes. True if anything went."""
        moved = False
        while self.out or self.waiting:
            if not self.out:
                self.out.extend(self.waiting.popleft())
            try:
                sent = self.socket.sendmsg(islice(self.out, _MOST_PARTS))
            except BlockingIOError:
                return moved
            moved = True
            self.sent_bytes += sent
            _advance(self.out, sent)
        return moved

    def pull(self) -> bool:
        """Receives what is there of what is expected. True if anything came. Raises _Broken."""
        moved = False
        while self.expected:
            try:
                targets = islice(self._parts, _MOST_PARTS) if self._parts else (self._head[self._got :],)
                count = self.socket.recvmsg_into(targets)[0]
            except BlockingIOError:
                return moved
            if count == 0:
                raise _Broken("closed its link")
            moved = True
            self.received_bytes += count
            if self._parts:
                _advance(self._parts, count)
                if not self._parts:
                    self._end_frame()
                continue
            self._got += count
            if self._got == HEADER.size:
                self._got = 0
                self._begin_frame()
        return moved

    def _begin_frame(self) -> None:
        magic, message, rank, step, length = HEADER.unpack(self._head)
        wanted, wanted_step, parts = self.expected[0]
        if magic != MAGIC:
            raise _Broken("sent something that is no frame")
        if message == Message.ABORT:
            raise _Broken("gave up", rank)
        total = sum(map(len, parts))
        if (message, step, length, rank) != (wanted, wanted_step, total, self.rank):
            raise _Broken(
                f"sent message {message} of step {step} with {length} bytes as worker {rank}; "
                f"expected was {wanted.name} of step {wanted_step} with {total} bytes"
            )
        self._parts.extend((*parts, self._checksum))

    def _end_frame(self) -> None:
        message, step, parts = self.expected.popleft()
        if CHECKSUM.unpack(self._checksum)[0] != word_sum(parts):
            raise _Broken(f"sent {message.name} of step {step} that do not match their checksum")


def _advance(parts: deque[memoryview], count: int) -> None:
    """Takes the first `count` bytes off; no byte is moved."""
    while parts and count >= len(parts[0]):
        count -= len(parts.popleft())
    if count:
        parts[0] = parts[0][count:]


@final
class _Broken(Exception):
    """A link that cannot go on; `missing` is the rank that the other end misses, if it said so."""

    def __init__(self, text: str, missing: int = -1) -> None:
        self.text, self.missing = text, missing
        super().__init__(text, missing)


@final
class TcpLinks(Links):
    """Links of worker `rank` over connections that have been through the handshake, by the peer's rank."""

    def __init__(self, rank: int, nodes: Sequence[str], connections: Mapping[int, socket.socket]) -> None:
        self._rank, self._nodes = rank, nodes
        self._links = {peer: _Link(peer, peer_name(peer, nodes), connection) for peer, connection in connections.items()}
        self._arrivals = select.poll()
        for connection in connections.values():
            self._arrivals.register(connection, select.POLLIN)

    @property
    def sent_bytes(self) -> int:
        return sum(link.sent_bytes for link in self._links.values())

    @property
    def received_bytes(self) -> int:
        return sum(link.received_bytes for link in self._links.values())

    def send(self, rank: int, message: Message, step: int, parts: Sequence[memoryview]) -> None:
        link = self._links[rank]
        head = memoryview(header(message, self._rank, step, sum(map(len, parts))))
        link.waiting.append([head, *parts, memoryview(CHECKSUM.pack(word_sum(parts)))])
        self._guarded(link, step)

    def expect(self, rank: int, message: Message, step: int, parts: Sequence[memoryview]) -> None:
        self._links[rank].expected.append((message, step, parts))

    def progress(self, step: int) -> None:
        arrived = {descriptor for descriptor, _ in self._arrivals.poll(0)}
        for link in self._links.values():
            if link.out or link.socket.fileno() in arrived:
                self._guarded(link, step)

    def complete(self, step: int, deadline_s: float, sent: bool, late: Callable[[], None]) -> None:
        end, told = time.monotonic() + deadline_s, False
        while True:
            moved = False
            for link in self._links.values():
                moved |= self._guarded(link, step)
            silent = [link for link in self._links.values() if link.expected]
            full = [link for link in self._links.values() if link.out]  # nothing waits behind an empty one
            if not silent and not (sent and full):
                return
            if moved:
                continue
            left = end - time.monotonic()
            if left <= 0:
                ranks = sorted({link.rank for link in silent or full})
                names = ", ".join(self._links[rank].name for rank in ranks)
                text = f"{names} did not reach step {step} within {deadline_s:.3g} s"
                raise PeerError(text, ranks, step, patience_s=_PATIENCE * deadline_s)
            if left <= deadline_s / 2 and not told:
                told = True
                late()
            poll = select.poll()
            for link in self._links.values():
                events = (select.POLLIN if link.expected else 0) | (select.POLLOUT if link.out else 0)
                if events:
                    poll.register(link.socket, events)
            poll.poll(1000 * (left if told else max(0.001, left - deadline_s / 2)))

    def _guarded(self, link: _Link, step: int) -> bool:
        try:
            pushed = link.push()
            return link.pull() or pushed
        except _Broken as broken:
            missing = link.rank if broken.missing < 0 else broken.missing
            if 0 <= missing < len(self._nodes) and missing not in (link.rank, self._rank):
                text = f"{link.name} {broken.text} at step {step} for want of {peer_name(missing, self._nodes)}"
                raise PeerError(text, [missing], step) from broken
            raise PeerError(f"{link.name} {broken.text} at step {step}", [link.rank], step) from broken
        except OSError as error:
            raise PeerError(f"the link to {link.name} broke at step {step} ({error})", [link.rank], step) from error

    def abort(self, missing_rank: int, step: int) -> None:
        frame = header(Message.ABORT, missing_rank, step, 0)
        for link in self._links.values():
            link.waiting.clear()
            with suppress(OSError):  # it is gone, or its buffer is full
                link.push()
                if not link.out:  # in the middle of a frame nothing else can be said; its end says it
                    link.socket.send(frame)
            # Not closed: what has come and was not read would then break the link before the peer has read this.
            with suppress(OSError):
                link.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for link in self._links.values():
            link.socket.close()
