"""What happens when a bound on how many is reached: one refusal that names the bound, and all that was there goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from lockstep.contract.errors import UserError
from lockstep.v1 import dataset_service_pb2 as dataset_pb
from lockstep.v1 import training_job_service_pb2 as pb
from services import limits
from services.datasets.ingest import ingest
from tests.services.running import METADATA, Running, refusal, running
from tests.services.test_datasets import fake_ingest, push
from tests.services.test_models import trained, write_checkpoint

pytestmark = pytest.mark.anyio
Code = grpc.StatusCode


async def test_jobs_that_have_not_ended(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LIVE_JOBS", 1)
    first = await api.create()
    error = await refusal(api.create())
    assert error.code() == Code.RESOURCE_EXHAUSTED and "1 jobs have not ended" in str(error.details())
    await api.cancel(first.name)
    assert (await api.create()).name != first.name


async def test_jobs_in_all(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOBS", 1)
    first = await api.create()
    await api.cancel(first.name)
    error = await refusal(api.create())
    assert error.code() == Code.RESOURCE_EXHAUSTED and "delete some" in str(error.details())
    await api.jobs.DeleteTrainingJob(pb.DeleteTrainingJobRequest(name=first.name), metadata=METADATA, timeout=10)
    assert (await api.create()).name


async def test_datasets_and_their_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DATASETS", 1)
    monkeypatch.setattr(limits, "DATASET_VERSIONS", 1)
    async with running(tmp_path / "data", dataset=False, ingest=fake_ingest) as api:
        await push(api, b"first")
        another_version = await refusal(push(api, b"second"))
        assert "1 versions" in str(another_version.details())
        head = dataset_pb.UploadHeader(dataset_id="other", npz=dataset_pb.NpzFormat())
        head.size_bytes, head.sha256 = 5, "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"
        another_name = await refusal(push(api, b"first", head))
        assert "1 datasets" in str(another_name.details())
        kept = await api.datasets.GetDataset(dataset_pb.GetDatasetRequest(name="datasets/small"), metadata=METADATA, timeout=10)
        assert kept.state == dataset_pb.Dataset.READY and len(kept.versions) == 1


async def test_downloads(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await trained(api, 10)
    write_checkpoint(api.server.settings.data / "files", job, 10)
    monkeypatch.setattr(limits, "DOWNLOADS", 0)
    stream = api.jobs.DownloadModel(pb.DownloadModelRequest(name=f"jobs/{job}"), metadata=METADATA, timeout=10)
    error = await refusal(stream.read)
    assert error.code() == Code.RESOURCE_EXHAUSTED and "try again later" in str(error.details())


async def test_the_time_of_reading_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INGEST_SECONDS", 0.01)
    upload = tmp_path / "upload"
    upload.write_bytes(b"a,kind\n1,x\n2,y\n")
    header = dataset_pb.UploadHeader(dataset_id="small", csv=dataset_pb.CsvFormat(label="kind"))
    with pytest.raises(UserError, match="cut it into smaller files"):
        await ingest(upload, tmp_path / "out", header)


async def test_streams_of_one_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call beyond the bound waits for a place until its deadline; the server never sees it."""
    monkeypatch.setattr(limits, "CONCURRENT_STREAMS", 1)
    async with running(tmp_path / "data") as api:
        job = await api.create()
        watching = api.jobs.WatchTrainingJob(pb.WatchTrainingJobRequest(name=job.name), metadata=METADATA, timeout=30)
        await watching.read()
        request = pb.GetTrainingJobRequest(name=job.name)
        error = await refusal(api.jobs.GetTrainingJob(request, metadata=METADATA, timeout=0.5))
        assert error.code() == Code.DEADLINE_EXCEEDED
        watching.cancel()
        assert (await api.get(job.name)).name == job.name


async def test_http_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_CONNECTIONS", 1)
    async with running(tmp_path / "data") as api:
        port = api.server.ports["http"]
        _, idle = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = await asyncio.wait_for(reader.readline(), 10)
        assert b" 503 " in answer
        idle.close()
        writer.close()
