"""SIGKILL of the API server right after an acknowledgement: what was acknowledged is there, once."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from lockstep.v1 import training_job_service_pb2 as pb
from lockstep.v1 import training_job_service_pb2_grpc
from lockstep.v1.dataset_service_pb2 import CreateDatasetRequest, CsvFormat, UploadHeader
from lockstep.v1.dataset_service_pb2_grpc import DatasetServiceStub
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import TrainingJob
from tests.services.specs import spec

ROUNDS = 2
TOKEN = "a-token-that-is-long-enough"
METADATA = (("authorization", f"Bearer {TOKEN}"),)
ROWS = b"".join(b"%d,%d\n" % (n, n % 2) for n in range(64))
CSV = b"a,kind\n" + ROWS


@contextmanager
def api(folder: Path) -> Iterator[tuple[subprocess.Popen[str], grpc.Channel]]:
    """A server process, its ports any that are free; killed at the end."""
    token = folder / "token"
    token.write_text(TOKEN)
    ports = [f"--{name}=127.0.0.1:0" for name in ("listen", "http-listen", "agent-listen")]
    command = [
        sys.executable,
        "-m",
        "services.server",
        "api",
        "--data",
        str(folder / "data"),
        *ports,
        "--token-file",
        str(token),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            word, address = process.stdout.readline().split()
            assert word == "ready"
            with grpc.insecure_channel(address) as channel:
                yield process, channel
        finally:
            process.kill()


def small_job() -> JobSpec:
    model = {"layers": [{"dense": {"units": 2}}]}
    return spec(dataset="datasets/pairs", model=model, training={"epochs": 1, "batch_size": 8}, workers={})


def push(channel: grpc.Channel) -> None:
    head = UploadHeader(
        dataset_id="pairs", size_bytes=len(CSV), sha256=hashlib.sha256(CSV).hexdigest(), csv=CsvFormat(label="kind")
    )
    stub = DatasetServiceStub(channel)
    stub.CreateDataset(
        iter([CreateDatasetRequest(header=head), CreateDatasetRequest(chunk=CSV)]), metadata=METADATA, timeout=30
    )


def test_acknowledged_jobs_exist_once_after_a_kill(tmp_path: Path) -> None:
    acknowledged: list[tuple[pb.CreateTrainingJobRequest, str]] = []
    for round_number in range(ROUNDS + 1):
        with api(tmp_path) as (process, channel):
            stub = training_job_service_pb2_grpc.TrainingJobServiceStub(channel)
            if round_number == 0:
                push(channel)
            for request, name in acknowledged:
                assert stub.CreateTrainingJob(request, metadata=METADATA, timeout=20).name == name
            listed = stub.ListTrainingJobs(pb.ListTrainingJobsRequest(), metadata=METADATA, timeout=20)
            assert [job.name for job in listed.training_jobs] == [name for _, name in reversed(acknowledged)]
            request = pb.CreateTrainingJobRequest(training_job=TrainingJob(spec=small_job()), request_id=str(uuid.uuid4()))
            answer = stub.CreateTrainingJob(request, metadata=METADATA, timeout=20)
            os.kill(process.pid, signal.SIGKILL)
            acknowledged.append((request, answer.name))
