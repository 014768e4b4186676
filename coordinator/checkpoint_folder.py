"""One checkpoint's folder on disk: written whole or not at all, and verified by its hashes.

Written under a name that ends in .tmp: space is reserved, the files are written, then the manifest, which holds their hashes;
files and folder are fsynced, the folder is renamed, its parent is fsynced. A failed fsync is never retried (after one, the
kernel may hold clean pages that the disk never saw): CheckpointBroken goes up and the process ends.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

from lockstep.contract.errors import UserError
from lockstep.contract.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, MODEL_FILE, OPTIMIZER_FILE, FileRecord, Manifest
from worker.failpoints import failpoint

_HASH_BYTES = 1 << 20


@final
class NoSpace(Exception):
    """There is no room for the checkpoint; nothing was changed."""


@final
class CheckpointBroken(Exception):
    """The disk failed; what is committed before is intact, and this process must not go on."""


@final
class Damaged(Exception):
    """A folder is no whole checkpoint; the text says what is wrong."""


def record_of(content: bytes | memoryview) -> FileRecord:
    """The manifest's record of a file with this content."""
    return FileRecord(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def write_folder(target: Path, files: Mapping[str, bytes], manifest: Callable[[dict[str, FileRecord]], Manifest]) -> Manifest:
    """Commits a checkpoint as `target`, which must not exist; returns its manifest.

    Raises NoSpace, with nothing left behind, and CheckpointBroken.
    """
    temporary = target.with_name(target.name + ".tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    made = manifest({name: record_of(content) for name, content in files.items()})
    contents = {**files, MANIFEST_FILE: made.to_json().encode()}
    try:
        temporary.mkdir(parents=True)
        for name, content in contents.items():
            _reserve(temporary / name, len(content))
        failpoint("checkpoint.when_reserved", made.step)
        for name, content in contents.items():  # the manifest is the last
            _write(temporary / name, content)
            failpoint("checkpoint.when_file_written", made.step)
        failpoint("checkpoint.when_manifest_written", made.step, temporary)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            shutil.rmtree(temporary, ignore_errors=True)
            raise _broken(temporary, error) from error
        try:
            if temporary.exists():
                shutil.rmtree(temporary)
        except OSError as left:  # a disk that is full can still remove
            raise _broken(temporary, left) from left
        size = sum(len(content) for content in contents.values())
        raise NoSpace(f"{target.parent} has no room for a checkpoint of {size} bytes ({error.strerror})") from error
    try:
        for name in contents:
            _sync(temporary / name)
            failpoint("checkpoint.when_file_synced", made.step)
        _sync(temporary)
        temporary.rename(target)
        failpoint("checkpoint.when_renamed", made.step)
        _sync(target.parent)
        failpoint("checkpoint.when_folder_synced", made.step, target)
    except OSError as error:
        raise _broken(target, error) from error
    return made


def settle_folders(*folders: Path) -> None:
    """Makes the names in these folders durable: who renamed last may have died before its fsync. Raises CheckpointBroken."""
    for folder in folders:
        try:
            _sync(folder)
        except OSError as error:
            raise _broken(folder, error) from error


def verify_folder(folder: Path) -> Manifest:
    """Reads all of a checkpoint back and compares it with its manifest. Raises Damaged."""
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        path = folder / name
        if Path(name).name != name:
            raise Damaged(f"{folder / MANIFEST_FILE} names a file outside its folder, {name!r}")
        try:
            size = path.stat().st_size
            if size != record["size_bytes"]:
                raise Damaged(f"{path} has {size} bytes instead of {record['size_bytes']}")
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                digest = hashlib.sha256()
                while block := file.read(_HASH_BYTES):
                    digest.update(block)
        except OSError as error:
            raise Damaged(f"{path} cannot be read ({error.strerror})") from error
        if digest.hexdigest() != record["sha256"]:
            raise Damaged(f"{path} is not what was written: its SHA-256 differs from the manifest's")
    if not {MODEL_FILE, OPTIMIZER_FILE} <= manifest.files.keys():
        raise Damaged(f"{folder / MANIFEST_FILE} names no {MODEL_FILE} or no {OPTIMIZER_FILE}")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest alone. Raises Damaged."""
    path = folder / MANIFEST_FILE
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing") from error
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise Damaged(f"{path} is longer than {MAX_MANIFEST_BYTES} bytes")
    try:
        return Manifest.from_json(content, str(path))
    except UserError as error:
        raise Damaged(str(error)) from error


def remove_folder(folder: Path) -> None:
    """Removes a checkpoint so that neither a death nor a power cut in the midst leaves half of it under its name.

    Raises CheckpointBroken.
    """
    old = folder.with_name(folder.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    folder.rename(old)
    settle_folders(folder.parent)  # else its files may be gone from the disk before its name is
    failpoint("checkpoint.when_deleting")
    shutil.rmtree(old)


def set_aside(folder: Path) -> Path:
    """Moves a damaged folder to the next free name that ends in .bad-N."""
    number = 1
    while (bad := folder.with_name(f"{folder.name}.bad-{number}")).exists():
        number += 1
    return folder.rename(bad)


def _reserve(path: Path, size: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if size:
            os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)


def _write(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _broken(path: Path, error: OSError) -> CheckpointBroken:
    return CheckpointBroken(
        f"the checkpoint {path} could not be made durable ({error.strerror}); the one before it is intact. "
        "Look at the disk of the data folder, then resume"
    )
