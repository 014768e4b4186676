"""What a node lacks before it can carry workers, each with its remedy. Runs on the node itself; needs neither Ray nor NumPy."""

from __future__ import annotations

import mmap
import os
import platform
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from coordinator import limits

MARKER = ".shared-folder"


@dataclass(frozen=True, slots=True)
class Needs:
    """What is asked of a node: the shared folder, and the marker in it."""

    files_folder: str
    marker: str


def write_marker(files_folder: Path, marker: str) -> None:
    """Leaves a word in the shared folder, by which every node shows that it sees the same folder."""
    files_folder.mkdir(parents=True, exist_ok=True)
    temporary = files_folder / f"{MARKER}.{os.getpid()}"
    temporary.write_text(marker)
    temporary.replace(files_folder / MARKER)


def lacks(needs: Needs) -> list[str]:
    """Sentences with remedies; none when all is well."""
    return [
        *_folder(Path(needs.files_folder), needs.marker),
        *_shared_memory(),
        *_descriptors(),
        *_processor(),
    ]


def _folder(folder: Path, marker: str) -> list[str]:
    if not folder.is_dir():
        return [f"{folder} does not exist here; mount the shared data folder at this path on every node"]
    try:
        seen = (folder / MARKER).read_text()
    except OSError:
        seen = ""
    if seen != marker:
        return [f"{folder} is another folder than the agent's; mount the same shared folder on every node"]
    probe = folder / f".probe-{platform.node()}-{os.getpid()}"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return [f"{folder} cannot be written here ({error.strerror}); give the workers' user the right to write it"]
    free = shutil.disk_usage(folder).free
    if free < limits.SPACE_BYTES:
        return [
            f"{folder} has {free >> 20} MiB free; checkpoints need at least {limits.SPACE_BYTES >> 20} MiB, so free some space"
        ]
    return []


def _shared_memory() -> list[str]:
    if not hasattr(os, "memfd_create"):
        return ["this system has no memfd_create; Lockstep's workers need Linux 3.17 or newer"]
    try:
        fd = os.memfd_create("lockstep-preflight", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, limits.MIB)
            mmap.mmap(fd, limits.MIB).close()
        finally:
            os.close(fd)
    except OSError as error:
        return [
            f"shared memory cannot be reserved ({error.strerror}); raise the memory limit of the container or of the session"
        ]
    return []


def _descriptors() -> list[str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < limits.DESCRIPTORS and hard < limits.DESCRIPTORS:
        return [f"a process may open {hard} files; at least {limits.DESCRIPTORS} are needed: raise `ulimit -n`"]
    return []


def _processor() -> list[str]:
    machine = platform.machine()
    if machine in {"x86_64", "AMD64"}:
        return []
    return [f"the processor is {machine}: only x86-64 is tested, so compare a job's hash with a replay before you rely on it"]
