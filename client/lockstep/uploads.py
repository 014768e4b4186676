"""Sending a dataset's file: its header, then its bytes in pieces."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import final

import grpc

from lockstep.connection import Connection, is_away
from lockstep.contract import rules
from lockstep.contract.errors import UserError
from lockstep.names import short
from lockstep.v1 import dataset_service_pb2, dataset_service_pb2_grpc

CHUNK_BYTES = 512 * 1024

# Time for an upload: the server's reading of the file, and the bytes at a slow line's rate.
READING_S = 600.0
SLOW_BYTES_PER_S = 256 * 1024

ATTEMPTS = 3

Progress = Callable[[int, int], None]


def header_for(
    path: Path,
    name: str,
    *,
    label: str | None = None,
    inputs: str | None = None,
    labels: str | None = None,
    delimiter: str | None = None,
    decimal: str | None = None,
    skip_lines: int | None = None,
) -> dataset_service_pb2.UploadHeader:
    """The header of an upload; the ending of the file, .npz or .csv, says how it is read. Raises UserError."""
    header = dataset_service_pb2.UploadHeader(dataset_id=short(name), request_id=str(uuid.uuid4()))
    csv = {"label": label, "delimiter": delimiter, "decimal": decimal, "skip_lines": skip_lines}
    npz = {"inputs": inputs, "labels": labels}
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".csv"):
        raise UserError.of(str(path), suffix or "no ending", "it must end in .npz or .csv", "DATASET_FORMAT")
    wanted, foreign = (npz, csv) if suffix == ".npz" else (csv, npz)
    for option, value in foreign.items():
        if value is not None:
            raise UserError.of(option, value, f"a {suffix} file has no such option", "DATASET_OPTION")
    if suffix == ".csv" and not label:
        raise UserError.of("label", "", "a table needs the name of its label column: --label COLUMN", "DATASET_OPTION")
    target = header.npz if suffix == ".npz" else header.csv
    target.SetInParent()
    for option, value in wanted.items():
        if value is not None:
            setattr(target, option, value)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError.of(str(path), "", "it is not a file: a pipe or a device has no size to announce", "FILE_UNREADABLE")
    try:
        with path.open("rb") as file:
            header.size_bytes = os.fstat(file.fileno()).st_size
            header.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError.of(str(path), "", f"it cannot be read: {error.strerror or error}", "FILE_UNREADABLE") from error
    if header.size_bytes == 0:
        raise UserError.of(str(path), "0 bytes", "the file is empty", "FILE_EMPTY")
    if violations := rules.check(header):
        raise UserError(violations)
    return header


def send(
    connection: Connection, path: Path, header: dataset_service_pb2.UploadHeader, progress: Progress | None = None
) -> dataset_service_pb2.Dataset:
    """Uploads the file; `progress` is told bytes sent and bytes in all. A broken upload begins anew, a few times."""
    stub = dataset_service_pb2_grpc.DatasetServiceStub(connection.channel)
    deadline_s = READING_S + header.size_bytes / SLOW_BYTES_PER_S
    for attempt in range(1, ATTEMPTS + 1):
        pieces = _Pieces(path, header, progress)
        try:
            return stub.CreateDataset(iter(pieces), timeout=deadline_s, metadata=connection.metadata)
        except grpc.RpcError as error:
            if pieces.failure is not None:
                raise pieces.failure from error
            if not is_away(error) or attempt == ATTEMPTS:
                connection.fail(error)
    raise AssertionError("the last attempt returns or raises")


@final
class _Pieces:
    """The messages of an upload. gRPC swallows what its iterator raises, so a failure to read is kept for the caller."""

    def __init__(self, path: Path, header: dataset_service_pb2.UploadHeader, progress: Progress | None) -> None:
        self._path = path
        self._header = header
        self._progress = progress
        self.failure: UserError | None = None

    def __iter__(self) -> Iterator[dataset_service_pb2.CreateDatasetRequest]:
        yield dataset_service_pb2.CreateDatasetRequest(header=self._header)
        sent, total = 0, self._header.size_bytes
        try:
            with self._path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield dataset_service_pb2.CreateDatasetRequest(chunk=chunk)
                    sent += len(chunk)
                    if self._progress is not None:
                        self._progress(min(sent, total), total)
        except OSError as error:
            remedy = f"it could not be read to its end: {error.strerror or error}"
            self.failure = UserError.of(str(self._path), "", remedy, "FILE_UNREADABLE")
            raise
