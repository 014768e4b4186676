"""A checkpoint's files as a stream: the manifest, then the weights. Read only; the coordinator writes them."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Final, final

from sqlalchemy import Connection

from lockstep.contract.errors import UserError
from lockstep.contract.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, MODEL_FILE, Manifest
from lockstep.v1.training_job_pb2 import Checkpoint
from lockstep.v1.training_job_service_pb2 import DownloadModelRequest, DownloadModelResponse, FileHeader
from services import limits
from services.jobs import lifecycle
from services.jobs.names import job_id
from services.jobs.transitions import TERMINAL, State
from services.store import Store, events

_FOLDER: Final = re.compile(r"0*([0-9]{1,19})-[0-9a-f]{6,64}")


@final
class Models:
    """Streams checkpoints out of DIR/files/checkpoints."""

    def __init__(self, store: Store, files: Path) -> None:
        self._store, self._root = store, files / "checkpoints"
        self._streams = 0

    async def download(self, request: DownloadModelRequest) -> AsyncIterator[DownloadModelResponse]:
        """The manifest and the weights of one checkpoint. Raises UserError when there is none, or it is damaged."""
        identity = job_id(request.name)
        wanted = request.step if request.HasField("step") else None
        if self._streams >= limits.DOWNLOADS:
            remedy = f"{limits.DOWNLOADS} downloads are under way, which is the most; try again later"
            raise UserError.of("", "", remedy, "TOO_MANY_DOWNLOADS")
        self._streams += 1
        file: BinaryIO | None = None
        try:
            manifest_bytes, manifest, weights = await self._opened(identity, wanted)
            file = weights
            record = manifest.files[MODEL_FILE]
            digest = hashlib.sha256(manifest_bytes).hexdigest()
            yield _header(MANIFEST_FILE, len(manifest_bytes), digest)
            for first in range(0, len(manifest_bytes), limits.CHUNK_BYTES):
                yield DownloadModelResponse(chunk=manifest_bytes[first : first + limits.CHUNK_BYTES])
            yield _header(MODEL_FILE, record["size_bytes"], record["sha256"])
            while piece := await asyncio.to_thread(weights.read, limits.CHUNK_BYTES):
                yield DownloadModelResponse(chunk=piece)
        finally:
            self._streams -= 1
            if file is not None:
                file.close()

    async def _opened(self, identity: str, wanted: int | None) -> tuple[bytes, Manifest, BinaryIO]:
        """The checkpoint that is wanted, or the newest; never another in its place. Raises UserError.

        Opened, so that it can be read even when it is dropped meanwhile. Its files go before its row does.
        """
        for attempt in range(1, limits.DOWNLOAD_LOOKS + 1):
            known = await self._store.run(lambda connection: _checkpoints(connection, identity))
            try:
                return await asyncio.to_thread(self._open, identity, known, wanted)
            except FileNotFoundError as missing:
                if attempt == limits.DOWNLOAD_LOOKS:
                    step = known[-1].step if wanted is None else wanted
                    remedy = f"its files are not in the data folder ({missing}){_others(known, step)}"
                    raise UserError.of("step", step, remedy, "CHECKPOINT_DAMAGED") from missing
            await asyncio.sleep(limits.DOWNLOAD_LOOK_SECONDS)
        raise AssertionError  # the last look returns or raises

    def _open(self, identity: str, known: list[Checkpoint], wanted: int | None) -> tuple[bytes, Manifest, BinaryIO]:
        checkpoint = next((item for item in reversed(known) if wanted in (None, item.step)), None)
        if checkpoint is None:
            remedy = f"there is no checkpoint of that step; kept are {', '.join(str(item.step) for item in known)}"
            raise UserError.of("step", wanted, remedy, "CHECKPOINT_NOT_FOUND")
        damaged: UserError | None = None
        for folder in self._folders(identity, checkpoint.step):
            try:
                return _open_folder(folder, checkpoint)
            except UserError as error:
                damaged = damaged or error
            except FileNotFoundError:
                continue
        if damaged is not None:
            remedy = f"{damaged.violations[0].remedy}{_others(known, checkpoint.step)}"
            raise UserError.of("step", checkpoint.step, remedy, "CHECKPOINT_DAMAGED") from damaged
        raise FileNotFoundError(self._root / identity)

    def _folders(self, identity: str, step: int) -> list[Path]:
        try:
            entries = sorted((self._root / identity).iterdir())
        except FileNotFoundError:
            return []
        return [entry for entry in entries if (match := _FOLDER.fullmatch(entry.name)) and int(match[1]) == step]


def _open_folder(folder: Path, checkpoint: Checkpoint) -> tuple[bytes, Manifest, BinaryIO]:
    with (folder / MANIFEST_FILE).open("rb") as manifest_file:
        content = manifest_file.read(MAX_MANIFEST_BYTES + 1)
    manifest = Manifest.from_json(content, str(folder / MANIFEST_FILE))
    if manifest.weights_sha256 != checkpoint.weights_sha256 or MODEL_FILE not in manifest.files:
        remedy = f"{folder / MANIFEST_FILE} was altered: it has weights_sha256 {manifest.weights_sha256}, and the job reported "
        remedy += f"{checkpoint.weights_sha256}"
        raise UserError.of("step", checkpoint.step, remedy, "CHECKPOINT_DAMAGED")
    file = (folder / MODEL_FILE).open("rb")
    size = file.seek(0, 2)
    file.seek(0)
    if size != manifest.files[MODEL_FILE]["size_bytes"]:
        file.close()
        expected = manifest.files[MODEL_FILE]["size_bytes"]
        remedy = f"{folder / MODEL_FILE} has {size:,} bytes, and its manifest says {expected:,}"
        raise UserError.of("step", checkpoint.step, remedy, "CHECKPOINT_DAMAGED")
    return content, manifest, file


def _others(known: list[Checkpoint], step: int) -> str:
    """What can be had instead."""
    others = [str(item.step) for item in known if item.step != step]
    return f"; take another with --step: {', '.join(others)}" if others else "; it has no other checkpoint"


def _checkpoints(connection: Connection, identity: str) -> list[Checkpoint]:
    job = lifecycle.must_find(connection, identity)
    found = events.checkpoints_of(connection, identity)
    if not found:
        if State(job.state) in TERMINAL:
            remedy = f"the job is {job.state}; it ended before its first checkpoint (checkpoints.every_steps gives one sooner)"
        else:
            remedy = f"the job is {job.state} and has no checkpoint yet; the first comes with its first epochs, one at its end"
        raise UserError.of("name", f"jobs/{identity}", remedy, "NO_CHECKPOINT")
    return found


def _header(name: str, size: int, digest: str) -> DownloadModelResponse:
    return DownloadModelResponse(header=FileHeader(name=name, size_bytes=size, sha256=digest))
