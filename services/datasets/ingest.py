"""The child process that reads an upload: started, bounded in time and answer, and understood."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import structlog
from google.protobuf import json_format

from lockstep.contract.errors import InternalError, UserError, Violation
from lockstep.v1.dataset_service_pb2 import DatasetSchema, UploadHeader
from services import limits

log = structlog.get_logger()

COMMAND = (sys.executable, "-m", "worker.data.ingest")


async def ingest(upload: Path, out: Path, header: UploadHeader, command: tuple[str, ...] = COMMAND) -> dict[str, Any]:
    """Reads the upload into the folder `out`; gives the document of its dataset.json.

    Raises UserError with what is wrong with the file, InternalError if the child crashed.
    """
    text = json_format.MessageToJson(header, preserving_proto_field_name=True, indent=None)
    arguments = (*command, "--upload", str(upload), "--out", str(out), "--header", text)
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "VIRTUAL_ENV") if name in os.environ}
    child = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
        limit=limits.INGEST_ANSWER_BYTES,
    )
    assert child.stdout is not None and child.stderr is not None
    try:
        async with asyncio.timeout(limits.INGEST_SECONDS):
            answer, trace, _ = await asyncio.gather(_read(child.stdout), _read(child.stderr), child.wait())
    except TimeoutError:
        remedy = f"reading it took more than {limits.INGEST_SECONDS:.0f} s; cut it into smaller files"
        raise UserError.of("file", "", remedy, "INGEST_TOO_SLOW") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    return _understood(answer, trace, child.returncode)


async def _read(stream: asyncio.StreamReader) -> bytes:
    """All of a stream up to the bound; what comes after is thrown away."""
    data = bytearray()
    while piece := await stream.read(1 << 16):
        if len(data) < limits.INGEST_ANSWER_BYTES:
            data += piece
    return bytes(data)


def _understood(answer: bytes, trace: bytes, status: int | None) -> dict[str, Any]:
    try:
        said = json.loads(answer)
        if said["ok"]:
            return dict(said["dataset"])
        violations = [Violation(**violation) for violation in said["violations"]]
    except (ValueError, KeyError, TypeError):
        log.error("ingest_crashed", status=status, trace=trace[-4000:].decode("utf-8", "replace"))
        if status in (-signal.SIGKILL, -signal.SIGXCPU, -signal.SIGSEGV, -signal.SIGBUS):
            remedy = f"the process that read it was ended by signal {-status}; the file is too large or too deep for its limits"
            raise UserError.of("file", "", remedy, "TOO_LARGE") from None
        raise InternalError(f"the process that reads uploads ended with status {status} and without an answer") from None
    raise UserError(violations)


def schema_of(document: dict[str, Any], size_bytes: int) -> DatasetSchema:
    """The schema that people see, from dataset.json."""
    schema = DatasetSchema(
        rows=document["rows"],
        input_shape=document["input_shape"],
        input_names=document.get("input_names", []),
        label_name=document.get("label_name", ""),
        size_bytes=size_bytes,
    )
    target = document["target"]
    if "classes" in target:
        classes = target["classes"]
        schema.classes.count = classes["count"]
        schema.classes.names.extend(classes.get("names", []))
        schema.classes.rows.extend(classes.get("rows", []))
        if "positions" in classes:
            schema.classes.positions = classes["positions"]
        if "no_label" in classes:
            schema.classes.no_label = classes["no_label"]
    else:
        schema.numbers.width = target["numbers"]["width"]
    if document.get("largest_index") is not None:
        schema.largest_index = document["largest_index"]
    return schema
