"""DownloadModel: the manifest, then the weights, of the last checkpoint or of one that is named."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest

from lockstep.contract.manifest import Manifest
from lockstep.internal.v1 import agent_service_pb2 as agent_pb
from lockstep.v1 import training_job_service_pb2 as pb
from services import limits
from tests.services.fake_agent import checkpoint, ended, started
from tests.services.running import METADATA, Running, refusal

pytestmark = pytest.mark.anyio
Code = grpc.StatusCode
WEIGHTS = b"w" * (2 * limits.CHUNK_BYTES + 5)


def write_checkpoint(files: Path, job: str, step: int, weights: bytes = WEIGHTS) -> Manifest:
    """A folder as the coordinator leaves it; its weights are only bytes here."""
    folder = files / "checkpoints" / job / f"{step}-{'c' * 12}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    record = {"size_bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    manifest = Manifest(
        job_id=job,
        run_number=1,
        step=step,
        epoch=1,
        arithmetic_digest="a" * 64,
        arithmetic_version=1,
        dataset_digest="b" * 64,
        fingerprint="f" * 64,
        weights_sha256=f"{step:064x}",
        files={"model.safetensors": record},  # type: ignore[dict-item]
        spec={},
        input_shape=[64],
        create_time="2026-01-01T00:00:00Z",
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return manifest


async def download(api: Running, name: str, **request: Any) -> dict[str, bytes]:
    """The files by name; sizes and hashes are those of the headers."""
    found: dict[str, bytes] = {}
    headers: dict[str, pb.FileHeader] = {}
    async for part in api.jobs.DownloadModel(pb.DownloadModelRequest(name=name, **request), metadata=METADATA, timeout=10):
        if part.HasField("header"):
            headers[part.header.name] = part.header
            found[part.header.name] = b""
        else:
            assert len(part.chunk) <= limits.CHUNK_BYTES
            found[list(found)[-1]] += part.chunk
    for name_of_file, content in found.items():
        header = headers[name_of_file]
        assert (header.size_bytes, header.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    return found


async def trained(api: Running, *steps: int) -> str:
    """A job with checkpoints at these steps, and their rows."""
    job = (await api.create()).name.removeprefix("jobs/")
    async with api.agent() as agent:
        await agent.sync()
        await agent.wish(job)
        await agent.say(job, 1, **started())
        for step in steps:
            await agent.say(job, 1, **checkpoint(step))
        await agent.say(job, 1, **ended(agent_pb.RunEnded.FAILED, "enough", steps[-1]))
    return job


async def test_the_last_one_or_the_one_that_is_named(api: Running) -> None:
    job = await trained(api, 10, 20)
    files = api.server.settings.data / "files"
    for step in (10, 20):
        write_checkpoint(files, job, step)
    (files / "checkpoints" / job / f"20-{'d' * 12}.bad-1").mkdir()
    found = await download(api, f"jobs/{job}")
    assert list(found) == ["manifest.json", "model.safetensors"] and found["model.safetensors"] == WEIGHTS
    assert Manifest.from_json(found["manifest.json"]).step == 20
    assert Manifest.from_json((await download(api, f"jobs/{job}", step=10))["manifest.json"]).step == 10
    error = await refusal(download(api, f"jobs/{job}", step=15))
    assert error.code() is Code.NOT_FOUND and "kept are 10, 20" in (error.details() or "")


async def test_without_a_checkpoint_it_says_so(api: Running) -> None:
    job = await api.create()
    error = await refusal(download(api, job.name))
    assert error.code() is Code.FAILED_PRECONDITION and "no checkpoint yet" in (error.details() or "")
    await api.cancel(job.name)
    ended = await refusal(download(api, job.name))
    assert "CANCELLED; it ended before its first checkpoint" in (ended.details() or "")
    assert (await refusal(download(api, "jobs/none"))).code() is Code.NOT_FOUND


async def test_files_that_are_not_what_the_store_knows_are_not_given_out(api: Running) -> None:
    job = await trained(api, 10)
    error = await refusal(download(api, f"jobs/{job}"))
    assert error.code() is Code.DATA_LOSS
    manifest = write_checkpoint(api.server.settings.data / "files", job, 10)
    folder = api.server.settings.data / "files" / "checkpoints" / job / f"10-{'c' * 12}"
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-1])
    assert (await refusal(download(api, f"jobs/{job}"))).code() is Code.DATA_LOSS
    (folder / "manifest.json").write_text(manifest.to_json().replace(f"{10:064x}", f"{11:064x}"))
    assert (await refusal(download(api, f"jobs/{job}"))).code() is Code.DATA_LOSS
