"""The spool of a run: a file of its events in order, appended by its coordinator, sent and removed by the agent.

Single writer: the coordinator of the run, which holds an flock on the file. One exception: when a coordinator ended without
a last word, the agent takes the lock over and appends the one event that says so (`append_lost`).

Whatever was appended survives the death of every process, since it is in the kernel; what must survive a power cut as well
(started, recovering, checkpoint, notice, ended) is fsynced when it is appended, and everything is before a checkpoint is
committed. On a full disk progress is dropped and all else waits a while for space, then SpoolFull goes up. A torn or
damaged tail is cut off when the file is opened for writing and not read otherwise. An fsync that failed is never retried:
the error goes up and the process ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from coordinator import framing, limits
from lockstep.internal.v1 import agent_service_pb2 as agent

_DURABLE = {"started", "recovering", "checkpoint", "notice", "ended"}
_READ_BYTES = 1 << 20


class SpoolTaken(Exception):
    """Another process writes this spool."""


class SpoolBroken(Exception):
    """An fsync of the spool failed: what it holds is not known any more, and this process must not go on."""


class SpoolFull(Exception):
    """There was no space for an event for too long; what was appended before it is whole."""


def spool_path(files_folder: Path, job_id: str, run_number: int) -> Path:
    """The spool of a run."""
    return files_folder / "spool" / f"{job_id}-{run_number}.events"


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[agent.RunEvent, int]]:
    """The whole events from `offset` on, each with the offset behind it. Ends at a torn or damaged tail."""
    with path.open("rb") as file:
        file.seek(offset)
        buffer = bytearray()
        while True:
            data = file.read(_READ_BYTES)
            buffer += data
            start = 0
            try:
                while (found := framing.unpack(buffer, start)) is not None:
                    payload, end = found
                    offset += end - start
                    start = end
                    yield agent.RunEvent.FromString(payload), offset
            except framing.FrameError:
                return
            del buffer[:start]
            if not data:
                return


class SpoolWriter:
    """Appends events of one run. Raises SpoolTaken when another process writes it."""

    def __init__(self, path: Path, run: agent.RunKey, now_ns: Callable[[], int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._run = run
        self._now_ns = now_ns
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise SpoolTaken(f"{path} is being written by another process") from error
        self.sequence = 0
        self.ended = False
        self._size = 0
        for event, end in read_events(path):
            self.sequence, self._size, self.ended = event.sequence, end, event.WhichOneof("event") == "ended"
        os.ftruncate(self._fd, self._size)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def append(self, event: agent.RunEvent, patience_s: float | None = None) -> int:
        """Gives the event its run, sequence and time and writes it; returns the sequence, 0 for dropped progress.

        Raises SpoolBroken, and SpoolFull when there was no space for `patience_s`, or for the limit.
        """
        kind = event.WhichOneof("event")
        if kind == "progress" and self._size > limits.SPOOL_PROGRESS_BYTES:
            return 0
        event.run.CopyFrom(self._run)
        event.sequence = self.sequence + 1
        event.time.FromNanoseconds(self._now_ns())
        frame = framing.pack(event.SerializeToString())
        deadline = time.monotonic() + (limits.SPOOL_FULL_S if patience_s is None else patience_s)
        while not self._write(frame):
            if kind == "progress":
                return 0
            if time.monotonic() > deadline:
                raise SpoolFull(f"no space for the run's events in {self._path}; free some space in the data folder")
            time.sleep(limits.POLL_S)
        self.sequence += 1
        self.ended = kind == "ended"
        if kind in _DURABLE:
            self.sync()
        return self.sequence

    def _write(self, frame: bytes) -> bool:
        """Writes a frame whole, or nothing of it when the disk is full."""
        left = memoryview(frame)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return False
            raise
        self._size += len(frame)
        return True

    def sync(self) -> None:
        """Makes everything appended durable. Raises SpoolBroken."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise SpoolBroken(
                f"the events in {self._path} could not be made durable ({error.strerror}); look at the disk of the data folder"
            ) from error

    def close(self) -> None:
        """Gives the lock back."""
        os.close(self._fd)


def append_lost(
    path: Path, run: agent.RunKey, now_ns: Callable[[], int], reason: str, cause: agent.RunEnded.Cause.ValueType
) -> None:
    """The agent's exception to the single writer: says that the coordinator ended without a last word.

    Appends nothing when the spool already holds the run's end. Raises SpoolTaken while the coordinator still lives, and
    SpoolFull at once when there is no space: the agent comes again.
    """
    writer = SpoolWriter(path, run, now_ns)
    try:
        if not writer.ended:
            ended = agent.RunEnded(outcome=agent.RunEnded.LOST, reason=reason[: limits.REASON_CHARACTERS], cause=cause)
            for event, _ in read_events(path):
                if event.WhichOneof("event") == "progress":
                    ended.last_step = event.progress.progress.step
                    del ended.computed_rows[:]
                    ended.computed_rows.extend(event.progress.computed_rows)
            writer.append(agent.RunEvent(ended=ended), patience_s=0.0)
    finally:
        writer.close()
