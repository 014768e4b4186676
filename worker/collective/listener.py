"""A worker's listening socket: peers of other nodes and the coordinator dial it, and only who proves the key gets further."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import final

from worker.collective.handshake import COORDINATOR, HandshakeError, Membership, answer, dial
from worker.collective.peers import PeerError, peer_name
from worker.collective.tcp import prepare_socket
from worker.limits import CONNECT_TIMEOUT_S, HANDSHAKE_TIMEOUT_S, MAX_HANDSHAKES


@final
class Listener:
    """Accepts in a thread of its own; each handshake has its own thread and deadline, so that nobody can hold up another.

    `serve` is called with a coordinator's connection in that thread, and the connection is closed after it.
    """

    def __init__(self, host: str, member: Membership, serve: Callable[[socket.socket], None]) -> None:
        self._member, self._serve = member, serve
        self._socket = socket.create_server((host, 0), backlog=MAX_HANDSHAKES)
        self.port: int = self._socket.getsockname()[1]
        self._handshakes = threading.BoundedSemaphore(MAX_HANDSHAKES)
        self._changed = threading.Condition()
        self._arrived: dict[int, socket.socket] = {}
        self._serving: set[socket.socket] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="listener", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                if self._closed:
                    return
                time.sleep(0.05)  # no descriptors are left, say: they come back
                continue
            self._handshakes.acquire()
            threading.Thread(target=self._greet, args=(connection,), name="handshake", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        try:
            rank = answer(connection, self._member, HANDSHAKE_TIMEOUT_S)
        except HandshakeError as error:
            print(f"worker {self._member.rank}: refused a connection: {error}", file=sys.stderr)
            connection.close()
            return
        finally:
            self._handshakes.release()
        prepare_socket(connection)
        with self._changed:
            kept = not self._closed and (rank == COORDINATOR or rank not in self._arrived)
            if kept and rank == COORDINATOR:
                self._serving.add(connection)
            elif kept:
                self._arrived[rank] = connection
                self._changed.notify_all()
        if not kept:
            connection.close()
        elif rank == COORDINATOR:
            try:
                self._serve(connection)
            finally:
                with self._changed:
                    self._serving.discard(connection)
                connection.close()

    def take(self, ranks: Sequence[int], nodes: Sequence[str], deadline: float) -> dict[int, socket.socket]:
        """The connections of `ranks`, awaited until `deadline` (monotonic). Raises PeerError naming who did not dial."""
        with self._changed:
            while not all(rank in self._arrived for rank in ranks):
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    late = [rank for rank in ranks if rank not in self._arrived]
                    names = ", ".join(peer_name(rank, nodes) for rank in late)
                    raise PeerError(f"{names} did not dial worker {self._member.rank}", late, 0)
            return {rank: self._arrived.pop(rank) for rank in ranks}

    def close(self) -> None:
        """Stops listening; connections that were not taken are closed."""
        self._closed = True
        with suppress(OSError):  # it may not listen any more
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self._socket.close()
        with self._changed:
            waiting = [*self._arrived.values(), *self._serving]
            self._arrived.clear()
        for connection in waiting:
            with suppress(OSError):  # the other end may have been first
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._thread.join(HANDSHAKE_TIMEOUT_S)


def dial_peer(address: tuple[str, int], member: Membership, peer: int, name: str, deadline: float) -> socket.socket:
    """A connection to `peer` through the handshake. Raises PeerError with the peer's `name`."""
    try:
        left = max(0.001, min(HANDSHAKE_TIMEOUT_S, deadline - time.monotonic()))
        connection = socket.create_connection(address, left)
    except OSError as error:
        raise PeerError(f"{name} cannot be reached at {address[0]}:{address[1]} ({error})", [peer], 0) from error
    try:
        dial(connection, member, peer, left)
    except HandshakeError as error:
        connection.close()
        raise PeerError(f"{name} at {address[0]}:{address[1]} is not of this group: {error}", [peer], 0) from error
    prepare_socket(connection)
    return connection


def link_peers(
    listener: Listener,
    member: Membership,
    peers: Sequence[int],
    addresses: Mapping[int, tuple[str, int]],
    nodes: Sequence[str],
) -> dict[int, socket.socket]:
    """Connections to all `peers`: this worker dials the lower ranks and is dialled by the higher ones. Raises PeerError."""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    connections: dict[int, socket.socket] = {}
    try:
        for peer in peers:
            if peer < member.rank:
                connections[peer] = dial_peer(addresses[peer], member, peer, peer_name(peer, nodes), deadline)
        connections.update(listener.take([peer for peer in peers if peer > member.rank], nodes, deadline))
    except PeerError:
        for connection in connections.values():
            connection.close()
        raise
    return connections
