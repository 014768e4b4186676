"""Runs one command, and ends it with all its descendants when the command ends, when stdin closes, or on SIGTERM.

The first line on stdin is JSON: {"command": [...], "grace_s": 5, "remove": [...], "remove_if_stopped": [...]}. The paths of
both lists are gone afterwards, those of the second unless the command ended by itself. The parent holds the other end: even
when the parent is killed, nothing of the command is left. What another has put at one of the paths meanwhile stays: the
parent's successor may be up before the command has ended. The guard is the reaper of orphans below it, so that processes that
left their group are found too. Standard library alone: it starts fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from stat import S_ISDIR

PR_SET_CHILD_SUBREAPER = 36
KILL_SECONDS = 5.0


def descendants(pid: int) -> list[int]:
    """All processes below one, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, front = [], [pid]
    while front:
        front = [child for parent in front for child in children.get(parent, [])]
        found += front
    return found


def send(pids: list[int], number: signal.Signals) -> None:
    """Sends a signal to each that still lives."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def end_all(grace_s: float, child: subprocess.Popen[bytes]) -> None:
    """Asks the command to end, then ends all that is left below this process."""
    if child.poll() is None:
        send([child.pid], signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
    send(descendants(os.getpid()), signal.SIGTERM)
    deadline = time.monotonic() + min(grace_s, 1.0)
    while descendants(os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.02)
    deadline = time.monotonic() + KILL_SECONDS
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        send(left, signal.SIGKILL)
        time.sleep(0.01)
    child.poll()


def identity(path: str) -> tuple[int, ...] | None:
    """What tells a file or folder from another at the same path; None where there is none."""
    try:
        stat = os.lstat(path)
    except OSError:
        return None
    return (stat.st_dev, stat.st_ino) if S_ISDIR(stat.st_mode) else (stat.st_dev, stat.st_ino, stat.st_mtime_ns)


def remove(path: str) -> None:
    """Removes a file, or a folder with all in it."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(path)


def read_line(fd: int) -> bytes:
    """The first line, and nothing beyond it."""
    line = bytearray()
    while not line.endswith(b"\n") and (byte := os.read(fd, 1)):
        line += byte
    return bytes(line)


def main() -> int:
    """Guards the command; its exit status is the command's, 128 + N after signal N."""
    line = read_line(0)
    if not line:
        return 0
    order = json.loads(line)
    always, if_stopped = ({path: identity(path) for path in order[kind]} for kind in ("remove", "remove_if_stopped"))
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_reader, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(order["command"], stdin=subprocess.DEVNULL, process_group=0)
    stopping = False
    while child.poll() is None and not stopping:
        readable, _, _ = select.select([0, wake_reader], [], [], 1.0)
        if 0 in readable and not os.read(0, 1024):
            stopping = True
        if wake_reader in readable:
            numbers = os.read(wake_reader, 64)
            stopping = stopping or bool({signal.SIGTERM, signal.SIGINT} & set(numbers))
    if stopping and child.poll() is None:
        end_all(float(order["grace_s"]), child)
    status = child.poll()
    end_all(0.5, child)
    for path, ours in {**always, **(if_stopped if stopping else {})}.items():
        if identity(path) == ours:
            remove(path)
    if status is None:
        return 0
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
