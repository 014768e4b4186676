"""How both ends of a link prove the group's key to each other before the first message (HMAC-SHA256 over fresh nonces).

    dialer -> listener   magic, run number, group number, dialer's rank, listener's rank, nonce
    listener -> dialer   nonce, HMAC(key, "listener", all of the above)
    dialer -> listener   HMAC(key, "dialer", all of the above)
    listener -> dialer   one byte: welcome

The key itself never crosses. The plane is not encrypted: it wants a trusted network.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
import struct
import time
from dataclasses import dataclass
from typing import final

from lockstep.contract.errors import LockstepError

# The rank of a group's coordinator.
COORDINATOR = 0xFFFF_FFFF

_NONCE_BYTES = 32
_HELLO = struct.Struct("!8sQQII32s")
_MAGIC = b"LOCKSTP1"
_WELCOME = b"\x01"


@final
class HandshakeError(LockstepError):
    """The other end did not prove that it belongs to the group, or went away."""


@final
@dataclass(frozen=True, slots=True)
class Membership:
    """What a member of a group knows: the group's key and numbers, and its own rank."""

    key: bytes
    run_number: int
    group_number: int
    rank: int


def dial(connection: socket.socket, member: Membership, peer: int, timeout_s: float) -> None:
    """The dialer's half, towards rank `peer`. Raises HandshakeError."""
    end = time.monotonic() + timeout_s
    numbers = (member.run_number, member.group_number, member.rank, peer)
    hello = _HELLO.pack(_MAGIC, *numbers, secrets.token_bytes(_NONCE_BYTES))
    _send(connection, hello, end)
    answer = _receive(connection, _NONCE_BYTES + hashlib.sha256().digest_size, end)
    nonce, proof = answer[:_NONCE_BYTES], answer[_NONCE_BYTES:]
    if not hmac.compare_digest(proof, _proof(member.key, b"listener", hello + nonce)):
        raise HandshakeError(f"worker {peer} does not know the key of group {member.group_number}")
    _send(connection, _proof(member.key, b"dialer", hello + nonce), end)
    if _receive(connection, len(_WELCOME), end) != _WELCOME:
        raise HandshakeError(f"worker {peer} did not welcome worker {member.rank}")


def answer(connection: socket.socket, member: Membership, timeout_s: float) -> int:
    """The listener's half. Returns the dialer's rank. Raises HandshakeError; says nothing of it to the other end."""
    end = time.monotonic() + timeout_s
    hello = _receive(connection, _HELLO.size, end)
    magic, run_number, group_number, rank, wanted, _ = _HELLO.unpack(hello)
    if magic != _MAGIC:
        raise HandshakeError("the other end does not speak Lockstep's protocol")
    if (run_number, group_number) != (member.run_number, member.group_number):
        raise HandshakeError(f"a member of run {run_number}, group {group_number} dialled group {member.group_number}")
    if wanted != member.rank or rank == member.rank:
        raise HandshakeError(f"worker {rank} dialled worker {wanted}; this is worker {member.rank}")
    nonce = secrets.token_bytes(_NONCE_BYTES)
    _send(connection, nonce + _proof(member.key, b"listener", hello + nonce), end)
    proof = _receive(connection, hashlib.sha256().digest_size, end)
    if not hmac.compare_digest(proof, _proof(member.key, b"dialer", hello + nonce)):
        raise HandshakeError(f"the other end, as worker {rank}, does not know the key of group {member.group_number}")
    _send(connection, _WELCOME, end)
    return int(rank)


def _proof(key: bytes, side: bytes, words: bytes) -> bytes:
    return hmac.new(key, side + b"\0" + words, hashlib.sha256).digest()


def _send(connection: socket.socket, data: bytes, end: float) -> None:
    try:
        connection.settimeout(max(0.001, end - time.monotonic()))
        connection.sendall(data)
    except OSError as error:
        raise HandshakeError(f"the other end went away during the handshake ({error})") from error


def _receive(connection: socket.socket, length: int, end: float) -> bytes:
    data = b""
    while len(data) < length:
        try:
            connection.settimeout(max(0.001, end - time.monotonic()))
            more = connection.recv(length - len(data))
        except OSError as error:
            raise HandshakeError(f"the other end went away during the handshake ({error})") from error
        if not more:
            raise HandshakeError("the other end closed during the handshake")
        data += more
    return data
