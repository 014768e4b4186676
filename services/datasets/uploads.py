"""An upload from its first byte to a version that jobs can use. What is refused or cut off leaves nothing behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, final

import structlog
from sqlalchemy import Connection

from lockstep.contract.digests import request_digest
from lockstep.contract.errors import UserError
from lockstep.contract.rules import check
from lockstep.v1.dataset_service_pb2 import CreateDatasetRequest, Dataset, UploadHeader
from services import limits
from services.clock import Clock
from services.datasets.folders import DatasetFolders
from services.datasets.ingest import ingest, schema_of
from services.store import Store
from services.store import datasets as rows
from services.store import jobs as job_rows
from services.store import requests as request_rows

log = structlog.get_logger()

METHOD: Final = "CreateDataset"
Ingest = Callable[[Path, Path, UploadHeader], Awaitable[dict[str, Any]]]


@final
class Uploads:
    """Takes uploads in and removes datasets. `under_way` says which are being taken in, and where they stand."""

    def __init__(
        self, store: Store, folders: DatasetFolders, clock: Clock, most_bytes: int = limits.UPLOAD_BYTES, read: Ingest = ingest
    ) -> None:
        self._store, self._folders, self._clock, self._most, self._read = store, folders, clock, most_bytes, read
        self.under_way: dict[str, Dataset.State.ValueType] = {}
        self._filing = asyncio.Lock()  # between a version's folder and its row

    async def sweep(self) -> None:
        """Removes what a stopped server left half done."""
        known = await self._store.run(rows.digests)
        swept = await asyncio.to_thread(self._folders.sweep, known)
        if swept:
            log.info("uploads_swept", folders=swept)

    async def take_in(self, requests: AsyncIterator[CreateDatasetRequest]) -> Dataset:
        """Reads the stream, checks and reads the file, registers the version."""
        header = await self._header(requests)
        digest = request_digest(header)
        request_id, dataset_id = header.request_id, header.dataset_id
        known = await self._store.run(lambda c: request_rows.answered(c, METHOD, request_id, digest))
        if known:
            return await self._store.run(lambda c: must_find(c, known.removeprefix("datasets/")))
        if dataset_id in self.under_way:
            remedy = "an upload of that name is under way; wait for its end"
            raise UserError.of("dataset_id", dataset_id, remedy, "UPLOAD_UNDER_WAY")
        if len(self.under_way) >= limits.UPLOADS:
            remedy = f"{limits.UPLOADS} uploads are under way, which is the most; try again later"
            raise UserError.of("", "", remedy, "TOO_MANY_UPLOADS")
        self.under_way[dataset_id] = Dataset.UPLOADING
        folder = None
        try:
            folder = await asyncio.to_thread(self._folders.begin, dataset_id, header.size_bytes)
            await _receive(requests, header, folder / "upload")
            self.under_way[dataset_id] = Dataset.PREPARING
            document = await self._read(folder / "upload", folder / "out", header)
            return await self._file(folder / "out", document, header, digest)
        except OSError as error:
            raise UserError.of("", "", f"the server cannot store the file ({error.strerror})", "DISK_FULL") from error
        finally:
            if folder is not None:
                await asyncio.shield(asyncio.to_thread(self._folders.discard, folder))
            del self.under_way[dataset_id]

    async def remove(self, dataset_id: str) -> None:
        """Removes a dataset, and the files that no other dataset shares. Raises UserError while a live job uses it."""
        async with self._filing:
            orphans = await self._store.run(lambda connection: remove_rows(connection, dataset_id))
            for digest in orphans:
                await asyncio.to_thread(self._folders.remove, digest)

    async def _header(self, requests: AsyncIterator[CreateDatasetRequest]) -> UploadHeader:
        first = await _next(requests)
        if first is None or first.WhichOneof("part") != "header":
            raise UserError.of("header", "", "the first message must be the header", "HEADER_REQUIRED")
        wrong = check(first.header)
        if wrong:
            raise UserError(wrong)
        if first.header.size_bytes > self._most:
            remedy = f"an upload has at most {self._most:,} bytes (`--upload-bytes` of the server)"
            raise UserError.of("size_bytes", f"{first.header.size_bytes:,}", remedy, "UPLOAD_TOO_LARGE")
        return first.header

    async def _file(self, out: Path, document: dict[str, Any], header: UploadHeader, request: str) -> Dataset:
        """Folder first, row second: a row never lacks its files, and files without a row are swept."""
        digest, now = str(document["digest"]), self._clock()
        async with self._filing:
            size = await asyncio.to_thread(self._folders.commit, out, digest)
            schema = schema_of(document, size)
            warnings = [str(warning) for warning in document.get("warnings", [])]

            def register(connection: Connection) -> Dataset:
                rows.add_version(connection, header.dataset_id, digest, schema, warnings, now)
                name = f"datasets/{header.dataset_id}"
                request_rows.record(connection, METHOD, header.request_id, request, name, now)
                return must_find(connection, header.dataset_id)

            return await self._store.run(register)


def must_find(connection: Connection, dataset_id: str) -> Dataset:
    """The dataset. Raises UserError if there is none."""
    found = rows.find(connection, dataset_id)
    if found is None:
        remedy = "there is no such dataset; `lockstep dataset list` lists them"
        raise UserError.of("name", f"datasets/{dataset_id}", remedy, "DATASET_NOT_FOUND")
    return found


def remove_rows(connection: Connection, dataset_id: str) -> list[str]:
    """Removes the rows; gives the digests whose files nobody needs any more."""
    found = must_find(connection, dataset_id)
    digests = [version.digest for version in found.versions]
    users = job_rows.users_of_dataset(connection, dataset_id)
    if users:
        names = ", ".join(f"jobs/{user}" for user in users)
        remedy = f"it is used by {names}; wait for the end, or cancel first"
        raise UserError.of("name", found.name, remedy, "DATASET_IN_USE")
    rows.remove(connection, dataset_id)
    kept = rows.digests(connection)
    return [digest for digest in digests if digest not in kept]


async def _next(requests: AsyncIterator[CreateDatasetRequest]) -> CreateDatasetRequest | None:
    try:
        async with asyncio.timeout(limits.UPLOAD_IDLE_SECONDS):
            return await anext(requests, None)
    except TimeoutError:
        remedy = f"nothing came for {limits.UPLOAD_IDLE_SECONDS:.0f} s; send it again"
        raise UserError.of("", "", remedy, "UPLOAD_TOO_SLOW") from None


async def _receive(requests: AsyncIterator[CreateDatasetRequest], header: UploadHeader, path: Path) -> None:
    """Writes the chunks; memory holds one at a time."""
    digest, size = hashlib.sha256(), 0

    def write(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    with path.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        await asyncio.to_thread(os.posix_fallocate, file.fileno(), 0, header.size_bytes)
        while (message := await _next(requests)) is not None:
            if message.WhichOneof("part") != "chunk":
                raise UserError.of("chunk", "", "every message after the first must be a chunk", "CHUNK_REQUIRED")
            size += len(message.chunk)
            if size > header.size_bytes or len(message.chunk) > limits.CHUNK_BYTES:
                break
            await asyncio.to_thread(write, message.chunk)
    if size != header.size_bytes:
        remedy = (
            f"{size:,} bytes came; the header and the file must say the same, and a chunk has at most {limits.CHUNK_BYTES:,}"
        )
        raise UserError.of("size_bytes", f"{header.size_bytes:,}", remedy, "UPLOAD_SIZE_DIFFERS")
    if digest.hexdigest() != header.sha256:
        remedy = f"the bytes that came have {digest.hexdigest()}; the file changed, or was damaged on its way: send it again"
        raise UserError.of("sha256", header.sha256, remedy, "UPLOAD_HASH_DIFFERS")
