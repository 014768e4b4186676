"""Rows 12 and 13: links between nodes, through a proxy that keeps them silent, resets them, or makes them slow.

The nodes are addresses of loopback; workers of different nodes share no memory.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import final
from unittest.mock import patch

from coordinator import limits
from tests.coordinator.links import Through, alone, nodes_of, stands_for
from tests.coordinator.proxy import BOTH_WAYS, READ_BYTES, Proxy, Way
from tests.faults.campaign import Verdict
from tests.faults.rows import Row
from worker.limits import HANDSHAKE_TIMEOUT_S

# What crosses the links in an undisturbed run, but for the last two steps, by the nodes of its workers.
BYTES = {"ab": 52_000, "aab": 61_000, "abb": 66_000, "abc": 102_000}


@final
@dataclass(frozen=True, slots=True)
class LinkCase:
    """A run through a proxy, a letter in `nodes` for the node of each worker.

    Everything is late by `delay_s`, comes in pieces of `piece_bytes`, into buffers of `buffer_bytes` (0: the kernel's choice).
    After `after_bytes` the links are silent for `silent_s`, those `ways`; where that is 0 they are reset. Workers wait
    `deadline_s` for each other in a step.
    """

    row: int
    name: str
    nodes: str = "aab"
    delay_s: float = 0.0
    piece_bytes: int = READ_BYTES
    buffer_bytes: int = 0
    after_bytes: int | None = None
    silent_s: float = 0.0
    ways: tuple[Way, ...] = BOTH_WAYS
    deadline_s: float = 30.0

    @property
    def is_reset(self) -> bool:
        """Whether its links are reset."""
        return self.after_bytes is not None and not self.silent_s

    @property
    def excuses(self) -> list[str]:
        """What may be told where silence costs a group: patterns, none where it must be waited for.

        It may be waited for all the same: slow steps have longer deadlines, and links are made with patience of their own.
        """
        ends = "|".join(re.escape(f"worker {rank} (node {node})") for rank, node in enumerate(self.nodes))
        excuses = []
        if self.silent_s > self.deadline_s:
            # Where only one way is silent, an end may first hear that the other gave up.
            excuses.append(f"({ends}) (did not reach|gave up at) step")
        if self.silent_s >= HANDSHAKE_TIMEOUT_S:
            excuses.append(f"({ends}).* during the handshake")
        return excuses


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    with patch.object(limits, "STEP_DEADLINE_FLOOR_S", seconds), patch.object(limits, "FIRST_STEP_DEADLINE_S", seconds):
        yield


def carry_out(case: LinkCase) -> bool:
    """Runs a case and says whether its fault struck; raises AssertionError where something does not hold."""
    struck = case.after_bytes is None

    def strike() -> None:
        nonlocal struck
        struck = True
        if case.silent_s:
            proxy.hold(case.silent_s, case.ways)
        else:
            proxy.reset()

    with (
        tempfile.TemporaryDirectory(prefix="lockstep-links-") as folder,
        Proxy(case.delay_s, case.piece_bytes, case.buffer_bytes) as proxy,
        _deadline(case.deadline_s),
    ):
        if case.after_bytes is not None:
            proxy.after(case.after_bytes, strike)
        run = Through(Path(folder), proxy, nodes_of(case.nodes), stands_for())
    run.is_like_alone()
    _told_what_happened(case, run, struck)
    sent, received = (sum(getattr(each, way) for each in run.stretches) for way in ("sent_bytes", "received_bytes"))
    assert proxy.forwarded_bytes > sent > 0
    if len(run.groups) == 1:  # each worker says what crossed; what one sent another received
        assert sent == received, f"{sent} bytes were sent, {received} received"
        assert not case.silent_s or not struck or run.seconds > case.silent_s
    return struck


def _told_what_happened(case: LinkCase, run: Through, struck: bool) -> None:
    """A lost link costs a group and nobody; what is only slow costs nothing."""
    count, lost = len(case.nodes), len(run.groups) - 1
    assert set(run.groups) == {count} and len(run.told) == lost, (run.groups, run.told)
    assert all(f"with {count} of {count} workers" in text for text in run.told), run.told
    if struck and case.excuses:
        assert lost <= 1, run.told
        assert all(re.search("|".join(case.excuses), text) for text in run.told), run.told
    else:
        assert lost == (struck and case.is_reset), run.told


def judge(case: LinkCase) -> Verdict:
    """Carries a case out."""
    alone()
    began = time.monotonic()
    struck = carry_out(case)
    return Verdict(case.row, int(struck), struck, time.monotonic() - began)


def _silent(
    nodes: str, after_bytes: int, silent_s: float, ways: tuple[Way, ...] = BOTH_WAYS, deadline_s: float = 30.0
) -> LinkCase:
    way = "both ways" if ways == BOTH_WAYS else "from who dialed" if ways == (Way.THERE,) else "from who was dialed"
    name = f"links of {nodes} silent {way} for {silent_s:g} s after {after_bytes} bytes, deadline {deadline_s:g} s"
    return LinkCase(12, name, nodes, after_bytes=after_bytes, silent_s=silent_s, ways=ways, deadline_s=deadline_s)


def _silent_cases() -> list[LinkCase]:
    return [
        _silent("aab", 30_001, 1.0),
        _silent("ab", 10_001, 1.0, (Way.THERE,)),
        _silent("abc", 10_001, 1.0, (Way.BACK,)),
        _silent("aab", 30_001, 4.0, deadline_s=1.0),
    ]


def _draw_silent(random: Random, _: int) -> LinkCase:
    nodes = random.choice(list(BYTES))
    after_bytes = random.randint(1, BYTES[nodes])
    ways = random.choice((BOTH_WAYS, (Way.THERE,), (Way.BACK,)))
    silent_s, deadline_s = random.choice(((1.0, 30.0), (1.0, 30.0), (10.0, 30.0), (4.0, 1.0)))
    return _silent(nodes, after_bytes, silent_s, ways, deadline_s)


def _slow(nodes: str, delay_s: float = 0.0, piece_bytes: int = READ_BYTES, buffer_bytes: int = 0) -> LinkCase:
    what = f"late by {1000 * delay_s:g} ms, in pieces of {piece_bytes} bytes, buffers of {buffer_bytes or 'any number of'}"
    return LinkCase(13, f"links of {nodes} {what}", nodes, delay_s, piece_bytes, buffer_bytes)


def _reset(nodes: str, after_bytes: int, delay_s: float = 0.0) -> LinkCase:
    name = f"links of {nodes} reset after {after_bytes} bytes, late by {1000 * delay_s:g} ms"
    return LinkCase(13, name, nodes, delay_s, after_bytes=after_bytes)


def _spoilt_cases() -> list[LinkCase]:
    return [
        _slow("aab"),
        _slow("aab", 0.005),
        _slow("aab", piece_bytes=1),
        _slow("aab", piece_bytes=7, buffer_bytes=1024),
        _slow("abc", 0.02),
        _slow("ab", 0.005, piece_bytes=700, buffer_bytes=2048),
        *(_reset("aab", after_bytes) for after_bytes in (1500, 4001, 20_003)),
        _reset("abc", 50_001, 0.005),
        _reset("ab", 30_001),
    ]


def _draw_spoilt(random: Random, _: int) -> LinkCase:
    nodes = random.choice(list(BYTES))
    match random.randrange(4):
        case 0:
            return _slow(nodes, delay_s=random.choice((0.005, 0.02, 0.1, 0.5)))
        case 1:
            return _slow(nodes, piece_bytes=random.choice((1, 1, 2, 3, 5)))
        case 2:
            pieces, buffers = random.randint(5, 2000), random.choice((1024, 2048, 4096))
            return _slow(nodes, random.choice((0.0, 0.005)), pieces, buffers)
        case _:
            return _reset(nodes, random.randint(1, BYTES[nodes]), random.choice((0.0, 0.0, 0.005)))


LINKS = (
    Row(12, "links between nodes silent, both ways or one", _silent_cases, _draw_silent, 180, judge, apart=True),
    Row(13, "links late, in pieces, reset", _spoilt_cases, _draw_spoilt, 240, judge, apart=True),
)
