"""Datasets: uploads in bounded pieces, refusals that keep nothing, versions, sharing, and deletion."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from lockstep.contract.errors import UserError
from lockstep.v1 import dataset_service_pb2 as pb
from services import limits
from services.datasets.folders import DatasetFolders
from tests.services.running import METADATA, Running, refusal, running
from tests.services.specs import spec

pytestmark = pytest.mark.anyio
Code = grpc.StatusCode
CSV = b"a,b,kind\n1,2,x\n3,4,y\n5,6,x\n"


async def fake_ingest(upload: Path, out: Path, header: pb.UploadHeader) -> dict[str, Any]:
    """Keeps the bytes as the one column; refuses what begins with "bad"."""
    content = upload.read_bytes()
    if content.startswith(b"bad"):
        raise UserError.of("upload, row 3", "x", "it must be a number", "BAD_CELL")
    out.mkdir()
    (out / "x.npy").write_bytes(content)
    target = {"classes": {"count": 10, "names": [], "rows": [1] * 10}}
    document = {
        "digest": hashlib.sha256(content).hexdigest(),
        "rows": 100,
        "input_shape": [64],
        "target": target,
        "warnings": ["w"],
    }
    (out / "dataset.json").write_text(json.dumps(document))
    return document


def header(content: bytes, name: str = "small", **changes: Any) -> pb.UploadHeader:
    fields: dict[str, Any] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "npz": pb.NpzFormat()}
    return pb.UploadHeader(dataset_id=name, **{**fields, **changes})


async def push(api: Running, content: bytes, head: pb.UploadHeader | None = None, chunk: int = 7) -> pb.Dataset:
    async def pieces() -> AsyncIterator[pb.CreateDatasetRequest]:
        yield pb.CreateDatasetRequest(header=head or header(content))
        for first in range(0, len(content), chunk):
            yield pb.CreateDatasetRequest(chunk=content[first : first + chunk])

    answer: pb.Dataset = await api.datasets.CreateDataset(pieces(), metadata=METADATA, timeout=30)
    return answer


def folders(data: Path) -> set[str]:
    return {entry.name for entry in (data / "files" / "datasets").iterdir()}


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", dataset=False, ingest=fake_ingest) as server:
        yield server


async def test_a_csv_through_the_real_reader(tmp_path: Path) -> None:
    async with running(tmp_path / "data", dataset=False) as api:
        head = header(CSV, "kinds", csv=pb.CsvFormat(label="kind"))
        made = await push(api, CSV, head)
        assert made.state == pb.Dataset.READY and list(made.schema.classes.names) == ["x", "y"]
        assert (made.schema.rows, list(made.schema.input_shape), list(made.schema.input_names)) == (3, [2], ["a", "b"])
        files = {path.name for path in (tmp_path / "data" / "files" / "datasets" / made.digest).iterdir()}
        assert files == {"dataset.json", "x.npy", "y.npy"}
        ragged = b"a,b,kind\n1,2,x\n3,y\n"
        error = await refusal(push(api, ragged, header(ragged, "ragged", csv=pb.CsvFormat(label="kind"))))
        assert error.code() is Code.INVALID_ARGUMENT
        assert folders(tmp_path / "data") == {made.digest}


async def test_labels_at_positions_are_part_of_the_schema(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(12).reshape(4, 3), y=np.array([[0, 1, -100], [4, -100, 1], [1, 1, 1], [0, 0, 0]]))
    async with running(tmp_path / "data", dataset=False) as api:
        made = await push(api, buffer.getvalue(), header(buffer.getvalue(), "texts", npz=pb.NpzFormat()))
        classes = made.schema.classes
        assert (classes.count, list(classes.rows), classes.positions, classes.no_label) == (5, [4, 5, 0, 0, 1], 3, -100)
        assert list(made.warnings) == ["array y: 2 of the labels 0 to 4 stand at no position"]


async def test_versions_by_digest(empty: Running) -> None:
    first = await push(empty, b"one")
    second = await push(empty, b"two")
    again = await push(empty, b"one")
    assert first.name == "datasets/small" and len(second.versions) == 2 and list(second.warnings) == ["w"]
    assert again.digest == first.digest and len(again.versions) == 2
    assert folders(empty.server.settings.data) == {first.digest, second.digest}
    old = await empty.create(spec(dataset=f"datasets/small@{second.digest[:8]}"))
    new = await empty.create(spec(dataset="datasets/small"))
    assert (old.dataset_digest, new.dataset_digest) == (second.digest, first.digest)


async def test_what_is_refused_leaves_nothing(empty: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    good = b"good bytes"
    refused: list[tuple[bytes, pb.UploadHeader, Code]] = [
        (b"bad bytes", header(b"bad bytes"), Code.INVALID_ARGUMENT),
        (good, header(good, sha256="0" * 64), Code.INVALID_ARGUMENT),
        (good, header(good, size_bytes=11), Code.INVALID_ARGUMENT),
        (good, header(good, size_bytes=9), Code.INVALID_ARGUMENT),
        (good, header(good, size_bytes=limits.UPLOAD_BYTES + 1), Code.INVALID_ARGUMENT),
        (good, header(good, name="../up"), Code.INVALID_ARGUMENT),
        (good, header(good, npz=None), Code.INVALID_ARGUMENT),
    ]
    for content, head, code in refused:
        error = await refusal(push(empty, content, head))
        assert error.code() is code, error.details()
    monkeypatch.setattr(limits, "UPLOADS", 0)
    assert (await refusal(push(empty, good))).code() is Code.RESOURCE_EXHAUSTED
    assert folders(empty.server.settings.data) == set()
    assert not (await empty.datasets.ListDatasets(pb.ListDatasetsRequest(), metadata=METADATA)).datasets


async def test_the_violations_of_the_reader_reach_the_caller(empty: Running) -> None:
    error = await refusal(push(empty, b"bad bytes"))
    assert error.details() == "upload, row 3: got x; it must be a number"


async def test_a_first_message_without_a_header_and_a_chunk_that_is_too_large(empty: Running) -> None:
    async def send(*messages: pb.CreateDatasetRequest) -> grpc.StatusCode:
        return (await refusal(empty.datasets.CreateDataset(iter(messages), metadata=METADATA, timeout=10))).code()

    large = b"x" * (limits.CHUNK_BYTES + 1)
    assert await send() is Code.INVALID_ARGUMENT
    assert await send(pb.CreateDatasetRequest(chunk=b"x")) is Code.INVALID_ARGUMENT
    assert (
        await send(pb.CreateDatasetRequest(header=header(b"x")), pb.CreateDatasetRequest(header=header(b"x")))
        is Code.INVALID_ARGUMENT
    )
    head = pb.CreateDatasetRequest(header=header(large))
    assert await send(head, pb.CreateDatasetRequest(chunk=large)) is Code.INVALID_ARGUMENT


async def test_the_disk_keeps_room(tmp_path: Path) -> None:
    place = DatasetFolders(tmp_path)
    with pytest.raises(UserError, match="bytes free, of which"):
        place.begin("a", 1 << 60)
    assert list((tmp_path / "datasets").iterdir()) == []


def test_the_same_content_again_mends_what_was_damaged(tmp_path: Path) -> None:
    place, digest = DatasetFolders(tmp_path), "0" * 64
    stored = tmp_path / "datasets" / digest / "x.npy"

    def commit() -> None:
        out = place.begin("a", 10, free_bytes=0) / "out"
        out.mkdir()
        (out / "x.npy").write_bytes(b"whole")
        place.commit(out, digest)

    commit()
    stored.write_bytes(b"whale")
    with stored.open("rb") as in_use:  # a job that has the file open is not disturbed
        commit()
        assert stored.read_bytes() == b"whole" and in_use.read() == b"whale"


async def test_an_upload_that_stops_is_given_up(empty: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UPLOAD_IDLE_SECONDS", 0.1)
    release = asyncio.Event()

    async def stuck() -> AsyncIterator[pb.CreateDatasetRequest]:
        yield pb.CreateDatasetRequest(header=header(b"12345"))
        await release.wait()

    error = await refusal(empty.datasets.CreateDataset(stuck(), metadata=METADATA, timeout=10))
    release.set()
    assert error.code() is Code.DEADLINE_EXCEEDED and folders(empty.server.settings.data) == set()


async def test_an_upload_under_way_is_seen_and_its_name_is_taken(empty: Running) -> None:
    sent = asyncio.Event()

    async def slow() -> AsyncIterator[pb.CreateDatasetRequest]:
        yield pb.CreateDatasetRequest(header=header(b"12345"))
        await sent.wait()
        yield pb.CreateDatasetRequest(chunk=b"12345")

    call = empty.datasets.CreateDataset(slow(), metadata=METADATA, timeout=10)
    request = pb.GetDatasetRequest(name="datasets/small")
    async with asyncio.timeout(5):
        while "small" not in empty.server.uploads.under_way:
            await asyncio.sleep(0.01)
    assert (await empty.datasets.GetDataset(request, metadata=METADATA)).state == pb.Dataset.UPLOADING
    assert (await refusal(push(empty, b"12345"))).code() is Code.FAILED_PRECONDITION
    sent.set()
    assert (await call).state == pb.Dataset.READY


async def test_the_same_request_id_gives_the_same_dataset(empty: Running) -> None:
    head = header(b"one", request_id=str(uuid.uuid4()))
    first = await push(empty, b"one", head)
    assert await push(empty, b"one", head) == first
    other = header(b"two", request_id=head.request_id)
    assert (await refusal(push(empty, b"two", other))).code() is Code.INVALID_ARGUMENT


async def test_a_dataset_that_a_live_job_uses_stays(empty: Running) -> None:
    made = await push(empty, b"one")
    job = await empty.create(spec(dataset="datasets/small"))
    request = pb.DeleteDatasetRequest(name="datasets/small")
    error = await refusal(empty.datasets.DeleteDataset(request, metadata=METADATA))
    assert error.code() is Code.FAILED_PRECONDITION and job.name in (error.details() or "")
    await empty.cancel(job.name)
    await empty.datasets.DeleteDataset(request, metadata=METADATA)
    assert folders(empty.server.settings.data) == set()
    assert (await refusal(empty.datasets.DeleteDataset(request, metadata=METADATA))).code() is Code.NOT_FOUND
    assert (await refusal(empty.create(spec(dataset="datasets/small")))).code() is Code.INVALID_ARGUMENT
    assert (await empty.get(job.name)).dataset_digest == made.digest


async def test_files_that_two_names_share_go_with_the_last(empty: Running) -> None:
    made = await push(empty, b"one")
    await push(empty, b"one", header(b"one", name="twin"))
    await empty.datasets.DeleteDataset(pb.DeleteDatasetRequest(name="datasets/small"), metadata=METADATA)
    assert folders(empty.server.settings.data) == {made.digest}
    await empty.datasets.DeleteDataset(pb.DeleteDatasetRequest(name="datasets/twin"), metadata=METADATA)
    assert folders(empty.server.settings.data) == set()


async def test_a_new_start_sweeps_what_was_half_done(tmp_path: Path) -> None:
    async with running(tmp_path, dataset=False, ingest=fake_ingest) as api:
        made = await push(api, b"one")
    root = tmp_path / "files" / "datasets"
    (root / "half.tmp").mkdir()
    (root / "half.tmp" / "upload").write_bytes(b"x")
    (root / ("0" * 64)).mkdir()
    async with running(tmp_path, dataset=False, ingest=fake_ingest) as api:
        assert folders(tmp_path) == {made.digest}
        assert (await api.datasets.GetDataset(pb.GetDatasetRequest(name=made.name), metadata=METADATA)).digest == made.digest
