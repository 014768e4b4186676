"""How a snapshot leaves a worker, or comes back: through its shared memory on the same node, else over its port."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import final

import numpy as np
from numpy.typing import NDArray

from lockstep.contract.errors import LockstepError
from lockstep.internal.v1.worker_pb2 import PrepareReply, ReceiveReply, SnapshotReply, StateVector
from worker.checksum import crc32c_of
from worker.collective.handshake import COORDINATOR, HandshakeError, Membership, dial
from worker.collective.links import Message
from worker.collective.shared_memory import identity
from worker.collective.tcp import CHECKSUM, HEADER, MAGIC, header, prepare_socket
from worker.limits import HANDSHAKE_TIMEOUT_S, TRANSFER_BYTES, TRANSFER_TIMEOUT_S

F32 = NDArray[np.float32]
State = dict[tuple[str, int, int], F32]

# Name of a vector, first element, one past the last.
_REQUEST = struct.Struct("!64sQQ")


@final
class TransferError(LockstepError):
    """A worker's state could not be had, or not be given: it ended, its link broke, or it has gone on to other steps."""


def fetch_state(
    reply: SnapshotReply,
    endpoint: PrepareReply,
    same_node: bool,
    member: Membership,
    rank: int,
) -> State:
    """All vectors that worker `rank` offers, as new float32 arrays by (name, first, end). Raises TransferError.

    To be called between the worker's answer to a snapshot request and its next stretch; `member` is the coordinator's
    membership.
    """
    try:
        if same_node:
            return _read_memory(reply, endpoint, identity(member.group_number, rank))
        return _receive(reply, endpoint, member, rank)
    except (OSError, HandshakeError, _Closed) as error:
        raise TransferError(f"the state of worker {rank} at step {reply.step} cannot be had: {error}") from error


def give_state(
    vectors: Mapping[str, F32],
    step: int,
    reply: ReceiveReply,
    endpoint: PrepareReply,
    same_node: bool,
    member: Membership,
    rank: int,
) -> None:
    """Puts the ranges of the flat vectors (P,) that worker `rank` asked for in their places. Raises TransferError.

    To be called between the worker's answer to receive and its restore; `member` is the coordinator's membership.
    """
    try:
        if same_node:
            _write_memory(vectors, reply, endpoint, identity(member.group_number, rank))
        else:
            _send(vectors, step, reply, endpoint, member, rank)
    except (OSError, HandshakeError, _Closed) as error:
        raise TransferError(f"the state of step {step} cannot be given to worker {rank}: {error}") from error


_Find = Callable[[int, str, int, int], F32 | None]


def serve_state(connection: socket.socket, rank: int, offered: _Find, wanted: _Find) -> None:
    """The worker's half: gives and takes ranges until the coordinator closes. `offered(step, name, first, end)` is the range
    to read and `wanted` that to be filled, or None when it is not so at that step; then the link is closed."""
    connection.settimeout(TRANSFER_TIMEOUT_S)
    head, body = bytearray(HEADER.size), bytearray(_REQUEST.size)
    try:
        while True:
            _fill(connection, memoryview(head))
            magic, message, _, step, length = HEADER.unpack(head)
            if (magic, length) != (MAGIC, _REQUEST.size) or message not in (Message.STATE_REQUEST, Message.STATE_GIVEN):
                return
            _fill(connection, memoryview(body))
            name, first, end = _REQUEST.unpack(body)
            find = offered if message == Message.STATE_REQUEST else wanted
            vector = find(step, name.rstrip(b"\0").decode("ascii", "replace"), first, end)
            if vector is None:
                return
            data = vector.data.cast("B")
            if message == Message.STATE_GIVEN:
                _take(connection, data)
                connection.sendall(header(Message.STATE, rank, step, 0))
                continue
            connection.sendall(header(Message.STATE, rank, step, len(data)))
            _give(connection, data)
    except (OSError, _Closed):
        return  # the coordinator has what it wanted, or is gone


@final
class _Closed(Exception):
    """The other end closed, or what it sent cannot be used."""


def _read_memory(reply: SnapshotReply, endpoint: PrepareReply, whose: bytes) -> State:
    fd = os.open(f"/proc/{endpoint.pid}/fd/{endpoint.segment_fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check_identity(fd, whose)
        state: State = {}
        for vector in reply.vectors:
            array = np.empty(vector.end - vector.first, np.float32)
            if array.size:
                data, at = array.data.cast("B"), 0
                while at < len(data):
                    count = os.preadv(fd, [data[at:]], vector.segment_offset + at)
                    if count == 0:
                        raise _Closed(f"its segment ends before {vector.name}[{vector.first}:{vector.end}]")
                    at += count
            state[_key(vector)] = array
        return state
    finally:
        os.close(fd)


def _write_memory(vectors: Mapping[str, F32], reply: ReceiveReply, endpoint: PrepareReply, whose: bytes) -> None:
    fd = os.open(f"/proc/{endpoint.pid}/fd/{endpoint.segment_fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        _check_identity(fd, whose)
        for vector in reply.vectors:
            data, at = vectors[vector.name][vector.first : vector.end].data.cast("B"), 0
            while at < len(data):
                at += os.pwritev(fd, [data[at:]], vector.segment_offset + at)
    finally:
        os.close(fd)


def _check_identity(fd: int, whose: bytes) -> None:
    if os.pread(fd, len(whose), 0) != whose:  # the process may be another one by now
        raise _Closed("what is open there is not its segment")


def _send(
    vectors: Mapping[str, F32], step: int, reply: ReceiveReply, endpoint: PrepareReply, member: Membership, rank: int
) -> None:
    if not reply.vectors:
        return
    with _dialled(endpoint, member, rank) as connection:
        head = bytearray(HEADER.size)
        for vector in reply.vectors:
            data = vectors[vector.name][vector.first : vector.end].data.cast("B")
            if not len(data):
                continue
            given = _REQUEST.pack(vector.name.encode("ascii"), vector.first, vector.end)
            connection.sendall(header(Message.STATE_GIVEN, COORDINATOR, step, len(given)) + given)
            _give(connection, data)
            _fill(connection, memoryview(head))
            if HEADER.unpack(head) != (MAGIC, Message.STATE, rank, step, 0):
                raise _Closed(f"it did not take {vector.name}[{vector.first}:{vector.end}]")


def _dialled(endpoint: PrepareReply, member: Membership, rank: int) -> socket.socket:
    connection = socket.create_connection((endpoint.host, endpoint.port), HANDSHAKE_TIMEOUT_S)
    try:
        dial(connection, member, rank, HANDSHAKE_TIMEOUT_S)
    except BaseException:
        connection.close()
        raise
    prepare_socket(connection)
    connection.settimeout(TRANSFER_TIMEOUT_S)
    return connection


def _receive(reply: SnapshotReply, endpoint: PrepareReply, member: Membership, rank: int) -> State:
    state: State = {}
    with _dialled(endpoint, member, rank) as connection:
        head = bytearray(HEADER.size)
        for vector in reply.vectors:
            array = np.empty(vector.end - vector.first, np.float32)
            state[_key(vector)] = array
            if not array.size:
                continue
            asked = _REQUEST.pack(vector.name.encode("ascii"), vector.first, vector.end)
            connection.sendall(header(Message.STATE_REQUEST, COORDINATOR, reply.step, len(asked)) + asked)
            _fill(connection, memoryview(head))
            if HEADER.unpack(head) != (MAGIC, Message.STATE, rank, reply.step, 4 * array.size):
                raise _Closed(f"it answered something else than {vector.name}[{vector.first}:{vector.end}]")
            _take(connection, array.data.cast("B"))
    return state


def _key(vector: StateVector) -> tuple[str, int, int]:
    return vector.name, vector.first, vector.end


def _give(connection: socket.socket, data: memoryview) -> None:
    for at in range(0, len(data), TRANSFER_BYTES):
        connection.sendall(data[at : at + TRANSFER_BYTES])
    connection.sendall(CHECKSUM.pack(crc32c_of(data)))


def _take(connection: socket.socket, target: memoryview) -> None:
    checksum = bytearray(CHECKSUM.size)
    _fill(connection, target)
    _fill(connection, memoryview(checksum))
    if CHECKSUM.unpack(checksum)[0] != crc32c_of(target):
        raise _Closed("what it sent does not match its checksum")


def _fill(connection: socket.socket, target: memoryview) -> None:
    while target:
        count = connection.recv_into(target)
        if count == 0:
            raise _Closed("it closed the link")
        target = target[count:]
