"""Taking a model home: the files of a checkpoint, checked before they appear under their names."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, final

import grpc

from lockstep.connection import Connection, is_away
from lockstep.contract.errors import UserError
from lockstep.contract.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, MODEL_FILE, PULL_AGAIN, Manifest
from lockstep.contract.weights import weights_sha256_of_file
from lockstep.failures import ServerUnavailable
from lockstep.v1 import training_job_service_pb2, training_job_service_pb2_grpc

# The order in which they replace older ones: the manifest last, so that it never stands beside weights it does not describe
# for longer than one rename.
FILES = (MODEL_FILE, MANIFEST_FILE)

MAX_WEIGHTS_BYTES = 1 << 40

SLOW_BYTES_PER_S = 256 * 1024
DOWNLOAD_S = 24 * 3600.0
ATTEMPTS = 3

Progress = Callable[[int, int], None]


def pull(
    connection: Connection, name: str, folder: str | os.PathLike[str], step: int | None = None, progress: Progress | None = None
) -> Manifest:
    """Downloads manifest.json and model.safetensors of a checkpoint into `folder`; returns the manifest.

    The files are written under a temporary name beside the folder, checked (sizes, SHA-256, and `weights_sha256` computed anew
    from the tensors), and only then moved into place. Raises UserError, or ServerUnavailable for a stream that broke or lied.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UserError.of(str(target), "a file", "name a folder to put the model into", "FOLDER")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _scratch(target) as scratch:
                _receive(connection, name, step, scratch, progress)
                manifest = _verified(connection, scratch)
                _move(scratch, target)
                return manifest
        except grpc.RpcError as error:
            if not is_away(error) or attempt == ATTEMPTS:
                connection.fail(error)
        except OSError as error:
            raise UserError.of(
                str(target), "", f"the model cannot be written there: {error.strerror or error}", "FOLDER"
            ) from error
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A new folder on the target's file system, removed at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f".{target.name or 'model'}.{secrets.token_hex(6)}.part"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _receive(connection: Connection, name: str, step: int | None, scratch: Path, progress: Progress | None) -> None:
    stub = training_job_service_pb2_grpc.TrainingJobServiceStub(connection.channel)
    request = training_job_service_pb2.DownloadModelRequest(name=name, step=step)
    call = stub.DownloadModel(request, timeout=DOWNLOAD_S, metadata=connection.metadata)
    current: _Incoming | None = None
    seen: set[str] = set()
    try:
        for answer in call:
            if answer.WhichOneof("part") == "header":
                if current is not None:
                    current.finish()
                header = answer.header
                limit = MAX_MANIFEST_BYTES if header.name == MANIFEST_FILE else MAX_WEIGHTS_BYTES
                # The server's names are never used as paths: only the two that are known are written.
                if header.name not in FILES or header.name in seen or header.size_bytes > limit:
                    raise _damaged(connection, f"it offered {header.name[:40]!r} of {header.size_bytes:,} bytes")
                seen.add(header.name)
                current = _Incoming(connection, scratch, header, progress)
            elif current is None:
                raise _damaged(connection, "bytes came before the name of their file")
            else:
                current.write(answer.chunk)
        if current is not None:
            current.finish()
        if len(seen) != len(FILES):
            raise _damaged(connection, f"{' and '.join(sorted(set(FILES) - seen))} did not come")
    finally:
        call.cancel()
        if current is not None:
            current.close()


@final
class _Incoming:
    """One file as it arrives."""

    def __init__(
        self, connection: Connection, scratch: Path, header: training_job_service_pb2.FileHeader, progress: Progress | None
    ) -> None:
        self._connection = connection
        self._header = header
        self._progress = progress
        self._digest = hashlib.sha256()
        self._received = 0
        self._file: BinaryIO = (scratch / header.name).open("xb")

    def write(self, chunk: bytes) -> None:
        """The next bytes. Raises ServerUnavailable when more come than were promised."""
        self._received += len(chunk)
        if self._received > self._header.size_bytes:
            raise _damaged(
                self._connection, f"{self._header.name} is longer than the {self._header.size_bytes:,} bytes promised"
            )
        self._digest.update(chunk)
        self._file.write(chunk)
        if self._progress is not None and self._header.name == MODEL_FILE:
            self._progress(self._received, self._header.size_bytes)

    def finish(self) -> None:
        """All has come: it must be what the header promised."""
        if self._received != self._header.size_bytes:
            what = f"{self._header.name} ended after {self._received:,} of {self._header.size_bytes:,} bytes"
            raise _damaged(self._connection, what)
        if self._digest.hexdigest() != self._header.sha256:
            raise _damaged(
                self._connection, f"{self._header.name} has the SHA-256 {self._digest.hexdigest()}, not {self._header.sha256}"
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()

    def close(self) -> None:
        """Closes the file; harmless the second time."""
        self._file.close()


def _verified(connection: Connection, scratch: Path) -> Manifest:
    """The manifest, after all that it says of the weights was found true."""
    manifest = Manifest.from_json((scratch / MANIFEST_FILE).read_bytes(), MANIFEST_FILE)
    record = manifest.files.get(MODEL_FILE)
    if record is not None:
        with (scratch / MODEL_FILE).open("rb") as file:
            found = {"size_bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        if found != dict(record):
            raise _damaged(connection, f"the manifest says {dict(record)} of {MODEL_FILE}, but it is {found}")
    computed = weights_sha256_of_file(scratch / MODEL_FILE)
    if computed != manifest.weights_sha256:
        raise _damaged(connection, f"the weights hash to {computed}, but the manifest says {manifest.weights_sha256}")
    return manifest


def _move(scratch: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        os.replace(scratch / name, target / name)
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(connection: Connection, what: str) -> ServerUnavailable:
    return ServerUnavailable(str(connection.address), f"the download is damaged: {what}; nothing was kept; {PULL_AGAIN}")
