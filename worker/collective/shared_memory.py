"""Shared memory inside a node: the segment of a worker.

A segment is a memfd, created and written by one worker and opened by the others as /proc/PID/fd/N: it has no name that could
be left behind, and it lasts as long as somebody has it open. Only the parameters and the norms have several writers: each
owner its chunk, and its carriers on other nodes.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from worker.collective.peers import PeerError, peer_name
from worker.memory import check_free

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

LINE = 64  # bytes of a cache line; counters stand alone on theirs
REPORT_FLOATS = 64  # a worker's report: finite or not, then loss sum and denominator of up to 31 subtrees

_MAGIC = 0x4C6F636B73746570
_IDENTITY = struct.Struct("<QQI")  # magic, group number, rank
_ARRIVED = 1 * LINE
_STOPPED = 2 * LINE
_EXCUSED = 3 * LINE
_REPORT = 4 * LINE
_ANNOUNCED = _REPORT + 8 * REPORT_FLOATS
_HEADER_BYTES = mmap.PAGESIZE


@final
@dataclass(frozen=True, slots=True)
class SegmentLayout:
    """Where things lie in a segment, in bytes: header, parameters, gradients, optimizer state, norms.

    Parameters and norms are in that of the node's leader only.
    """

    parameters: int
    gradients: int
    state: tuple[int, ...]
    norms: tuple[int, ...]
    size: int

    @classmethod
    def of(
        cls, parameters: int, gradients: tuple[int, int], state: tuple[int, int], norms: Sequence[int] = ()
    ) -> SegmentLayout:
        """`parameters` floats (0 unless leader), `gradients` (vectors, floats), `state` (vectors, floats of the own chunk),
        `norms` float64 of each pass (none unless leader)."""
        at = _HEADER_BYTES

        def place(floats: int) -> int:
            nonlocal at
            here = at
            at += math.ceil(4 * floats / mmap.PAGESIZE) * mmap.PAGESIZE
            return here

        first = place(parameters)
        vectors = place(gradients[0] * gradients[1])
        states = tuple(place(state[1]) for _ in range(state[0]))
        return cls(first, vectors, states, tuple(place(2 * count) for count in norms), at)


@final
class Segment:
    """Memory that the workers of a node share. Views keep it alive; `close` closes the descriptor only."""

    def __init__(self, fd: int, size: int, *, populate: bool = False) -> None:
        self.fd, self.size = fd, size
        self.map = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0))
        words = memoryview(self.map)[:_HEADER_BYTES].cast("q")
        self.arrived = words[_ARRIVED // 8 : _ARRIVED // 8 + 1]
        self.stopped = words[_STOPPED // 8 : _STOPPED // 8 + 1]
        self.excused = words[_EXCUSED // 8 : _EXCUSED // 8 + 1]
        self.announced = words[_ANNOUNCED // 8 : _ANNOUNCED // 8 + 1]
        self.report: F64 = np.frombuffer(self.map, np.float64, REPORT_FLOATS, _REPORT)

    @classmethod
    def create(cls, size: int, group_number: int, rank: int) -> Segment:
        """A new segment. Raises OSError (ENOMEM, ENOSPC) when there is not so much memory, before anything is written."""
        check_free(size, f"the segment of worker {rank}")
        fd = os.memfd_create("lockstep", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, size)  # without it a write to a page that is not there would be SIGBUS
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            segment = cls(fd, size, populate=True)
        except BaseException:
            os.close(fd)
            raise
        segment.map[: _IDENTITY.size] = identity(group_number, rank)
        return segment

    @classmethod
    def open(cls, pid: int, fd: int, size: int, group_number: int, rank: int, nodes: Sequence[str]) -> Segment:
        """A peer's segment. Raises PeerError when it is gone or is another group's."""
        try:
            own = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PeerError(f"{peer_name(rank, nodes)} is gone: its memory cannot be opened ({error})", [rank], 0) from error
        try:
            if os.fstat(own).st_size != size or os.pread(own, _IDENTITY.size, 0) != identity(group_number, rank):
                raise PeerError(f"{peer_name(rank, nodes)} has no memory of group {group_number}", [rank], 0)
            segment = cls(own, size)
        finally:
            os.close(own)
        segment.fd = -1
        return segment

    def floats(self, offset: int, count: int) -> F32:
        """`count` float32 from byte `offset` on."""
        return np.frombuffer(self.map, np.float32, count, offset)

    def doubles(self, offset: int, shape: tuple[int, int]) -> F64:
        """A float64 matrix from byte `offset` on."""
        return np.frombuffer(self.map, np.float64, shape[0] * shape[1], offset).reshape(shape)

    def close(self) -> None:
        """Closes the descriptor: nobody else can open it from now on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def identity(group_number: int, rank: int) -> bytes:
    """The first bytes of a segment: whose it is."""
    return _IDENTITY.pack(_MAGIC, group_number, rank)
