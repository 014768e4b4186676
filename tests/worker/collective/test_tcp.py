"""Links over TCP on loopback: what arrives is what was sent, and whatever else arrives ends the link with a name."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from worker.collective.handshake import HandshakeError, Membership, answer, dial
from worker.collective.links import Message
from worker.collective.listener import Listener, dial_peer, link_peers
from worker.collective.peers import PeerError, peer_name
from worker.collective.tcp import CHECKSUM, HEADER, MAGIC, TcpLinks, header

NODES = ["a", "b"]
KEY = b"k" * 32
Pair = tuple[socket.socket, socket.socket]


def nothing() -> None:
    """For waits that nobody looks at."""


def part(array: np.ndarray) -> list[memoryview]:
    return [array.data.cast("B")]


def frame_of(message: Message, step: int, payload: bytes) -> bytes:
    """As worker 1 sends it."""
    return (
        header(message, 1, step, len(payload))
        + payload
        + CHECKSUM.pack(int(np.frombuffer(payload, np.uint32).sum(dtype=np.uint64)) % 2**32)
    )


def test_any_flipped_bit_of_a_frame_is_noticed() -> None:
    frame = frame_of(Message.GRADIENTS, 4, np.arange(4, dtype=np.float32).tobytes())
    padding = range(8 * len(MAGIC) + 16, 8 * len(MAGIC) + 32)
    for bit in (bit for bit in range(8 * len(frame)) if bit not in padding):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        here, there = socket.socketpair()
        links = TcpLinks(0, NODES, {1: here})
        links.expect(1, Message.GRADIENTS, 4, part(np.zeros(4, np.float32)))
        there.sendall(damaged)
        with pytest.raises(PeerError, match="worker 1"):
            links.complete(4, 5.0, sent=False, late=nothing)
        links.close()
        there.close()


def test_large_messages_cross_both_ways_at_once(pair: Pair) -> None:
    size = 3_000_000
    sent = [np.random.default_rng(rank).normal(size=size).astype(np.float32) for rank in range(2)]
    received = [np.zeros(size, np.float32) for _ in range(2)]
    links = [TcpLinks(rank, NODES, {1 - rank: pair[rank]}) for rank in range(2)]

    def exchange(rank: int) -> None:
        for step in (1, 2):
            links[rank].expect(1 - rank, Message.GRADIENTS, step, part(received[rank]))
            links[rank].send(1 - rank, Message.GRADIENTS, step, [*part(sent[rank][:10]), *part(sent[rank][10:])])
            links[rank].complete(step, 20.0, sent=True, late=nothing)

    other = threading.Thread(target=exchange, args=(1,))
    other.start()
    exchange(0)
    other.join(20)
    assert received[0].tobytes() == sent[1].tobytes() and received[1].tobytes() == sent[0].tobytes()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"x" * HEADER.size, "sent something that is no frame"),
        (header(Message.GRADIENTS, 1, 4, 1 << 62), "with 4611686018427387904 bytes as worker 1; expected was GRADIENTS"),
        (header(Message.PARAMETERS, 1, 4, 64), "sent message 2 of step 4"),
        (header(Message.GRADIENTS, 1, 5, 64), "of step 5"),
        (header(Message.GRADIENTS, 0, 4, 64), "as worker 0"),
        (header(Message.ABORT, 1, 4, 0), "gave up at step 4"),
        (header(Message.ABORT, 77, 4, 0), "gave up at step 4"),
        (header(Message.GRADIENTS, 1, 4, 64) + b"y" * 63, "closed its link at step 4"),
        (header(Message.GRADIENTS, 1, 4, 64) + b"y" * 64 + b"\0\0\0", "closed its link at step 4"),
        (header(Message.GRADIENTS, 1, 4, 64) + b"y" * 64 + b"\0\0\0\0", "GRADIENTS of step 4 that do not match their checksum"),
        (header(Message.GRADIENTS, 1, 4, 64)[:7], "closed its link at step 4"),
        (b"", "closed its link at step 4"),
    ],
)
def test_a_wrong_frame_ends_the_link_and_names_the_worker(pair: Pair, data: bytes, text: str) -> None:
    links = TcpLinks(0, NODES, {1: pair[0]})
    links.expect(1, Message.GRADIENTS, 4, part(np.zeros(16, np.float32)))
    pair[1].sendall(data)
    pair[1].shutdown(socket.SHUT_WR)
    with pytest.raises(PeerError, match=text) as caught:
        links.complete(4, 5.0, sent=False, late=nothing)
    assert caught.value.missing_ranks == (1,) and "worker 1 (node b)" in str(caught.value)


def test_a_peer_is_named_with_the_first_characters_of_its_node() -> None:
    assert peer_name(1, ["b" * 56, "0123456789abcdef" * 3 + "01234567"]) == "worker 1 (node 0123456789ab)"


def test_every_cut_of_a_frame_is_noticed(pair: Pair) -> None:
    frame = frame_of(Message.GRADIENTS, 4, b"z" * 8)
    for length in range(len(frame)):
        here, there = socket.socketpair()
        links = TcpLinks(0, NODES, {1: here})
        links.expect(1, Message.GRADIENTS, 4, part(np.zeros(2, np.float32)))
        there.sendall(frame[:length])
        there.close()
        with pytest.raises(PeerError, match="closed its link"):
            links.complete(4, 5.0, sent=False, late=nothing)
        links.close()


def test_single_bytes_are_put_together(pair: Pair) -> None:
    values, target = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    links = TcpLinks(0, NODES, {1: pair[0]})
    links.expect(1, Message.PARAMETERS, 9, part(target))

    def trickle() -> None:
        for byte in frame_of(Message.PARAMETERS, 9, values.tobytes()):
            pair[1].sendall(bytes([byte]))

    thread = threading.Thread(target=trickle)
    thread.start()
    links.complete(9, 10.0, sent=True, late=nothing)
    thread.join(10)
    assert (target == values).all()


def test_silence_ends_at_the_deadline_with_a_name(pair: Pair) -> None:
    links = TcpLinks(0, NODES, {1: pair[0]})
    links.expect(1, Message.GRADIENTS, 812, part(np.zeros(16, np.float32)))
    began, told = time.monotonic(), list[float]()
    with pytest.raises(PeerError, match=r"worker 1 \(node b\) did not reach step 812 within 0.2 s"):
        links.complete(812, 0.2, sent=False, late=lambda: told.append(time.monotonic() - began))
    assert time.monotonic() - began < 2 and len(told) == 1 and told[0] >= 0.1


def test_who_gives_up_says_whom_it_misses_even_where_it_did_not_read(pair: Pair) -> None:
    nodes = ["a", "b", "c"]
    links = [TcpLinks(rank, nodes, {1 - rank: pair[rank]}) for rank in range(2)]
    links[0].send(1, Message.GRADIENTS, 4, part(np.zeros(16, np.float32)))
    links[0].expect(1, Message.GRADIENTS, 4, part(np.zeros(16, np.float32)))
    links[1].abort(2, 4)
    with pytest.raises(PeerError, match=r"worker 1 \(node b\) gave up at step 4 for want of worker 2 \(node c\)") as caught:
        links[0].complete(4, 5.0, sent=False, late=nothing)
    assert caught.value.missing_ranks == (2,)


def handshake(pair: Pair, dialer: Membership, listener: Membership, wanted: int = 1) -> list[str | int]:
    """Both halves; what each ended with."""
    ends: list[str | int] = ["", ""]

    def half(at: int, action: Callable[[], int | None]) -> None:
        try:
            ends[at] = action() or 0
        except HandshakeError as error:
            ends[at] = str(error)
            pair[at].close()

    other = threading.Thread(target=half, args=(1, lambda: answer(pair[1], listener, 5.0)))
    other.start()
    half(0, lambda: dial(pair[0], dialer, wanted, 5.0))
    other.join(10)
    return ends


def test_members_prove_the_key_to_each_other(pair: Pair) -> None:
    assert handshake(pair, Membership(KEY, 3, 9, 2), Membership(KEY, 3, 9, 1)) == [0, 2]


@pytest.mark.parametrize(
    ("dialer", "text"),
    [
        (Membership(b"w" * 32, 3, 9, 2), "went away|closed"),
        (Membership(KEY, 4, 9, 2), "run 4, group 9"),
        (Membership(KEY, 3, 8, 2), "run 3, group 8"),
        (Membership(KEY, 3, 9, 1), "worker 1 dialled"),
    ],
)
def test_strangers_are_refused(pair: Pair, dialer: Membership, text: str) -> None:
    ends = handshake(pair, dialer, Membership(KEY, 3, 9, 1))
    assert isinstance(ends[0], str) and isinstance(ends[1], str)

    assert re.search(text, ends[1])


def test_a_listener_without_the_key_is_found_out(pair: Pair) -> None:
    ends = handshake(pair, Membership(KEY, 3, 9, 2), Membership(b"w" * 32, 3, 9, 1))
    assert ends[0] == "worker 1 does not know the key of group 9"


def test_a_recorded_handshake_is_worth_nothing() -> None:
    member = Membership(KEY, 3, 9, 1)
    here, there = socket.socketpair()
    recorded: list[bytes] = []

    class Recording(socket.socket):
        def sendall(self, data: bytes, flags: int = 0) -> None:  # type: ignore[override]
            recorded.append(bytes(data))
            super().sendall(data, flags)

    thread = threading.Thread(target=answer, args=(there, member, 5.0))
    thread.start()
    with Recording(fileno=here.detach()) as dialer:
        dial(dialer, Membership(KEY, 3, 9, 2), 1, 5.0)
    thread.join(5)
    there.close()
    here, there = socket.socketpair()
    here.sendall(b"".join(recorded))
    with pytest.raises(HandshakeError, match="does not know the key"):
        answer(there, member, 5.0)
    here.close()
    there.close()


def test_a_listener_outlives_strangers_and_links_its_peer() -> None:
    refused = 0
    first = Listener("127.0.0.1", Membership(KEY, 1, 1, 0), lambda link: None)
    second = Listener("127.0.0.1", Membership(KEY, 1, 1, 1), lambda link: None)
    address = ("127.0.0.1", first.port)
    try:
        for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 200, MAGIC * 30):
            with socket.create_connection(address) as stranger:
                stranger.sendall(noise)
        with pytest.raises(PeerError, match="is not of this group"):
            dial_peer(address, Membership(b"w" * 32, 1, 1, 1), 0, "worker 0 (node a)", time.monotonic() + 5)
        refused += 1
        addresses = {0: address, 1: ("127.0.0.1", second.port)}
        found: dict[int, socket.socket] = {}
        linking = threading.Thread(
            target=lambda: found.update(link_peers(second, Membership(KEY, 1, 1, 1), [0], addresses, NODES))
        )
        linking.start()
        here = link_peers(first, Membership(KEY, 1, 1, 0), [1], addresses, NODES)
        linking.join(10)
        here[1].sendall(b"hello")
        assert found[0].recv(5) == b"hello"
        for connection in (here[1], found[0]):
            connection.close()
    finally:
        first.close()
        second.close()
    assert refused == 1


def test_who_does_not_dial_is_named() -> None:
    listener = Listener("127.0.0.1", Membership(KEY, 1, 1, 0), lambda link: None)
    try:
        with pytest.raises(PeerError, match=r"worker 1 \(node b\) did not dial worker 0"):
            listener.take([1], NODES, time.monotonic() + 0.1)
    finally:
        listener.close()
