"""A small server for the client's tests: real gRPC on loopback, answers that a test puts in."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, empty_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from lockstep.contract.errors import UserError, Violation
from lockstep.contract.manifest import Manifest
from lockstep.contract.weights import weights_sha256
from lockstep.v1 import (
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    dataset_service_pb2,
    dataset_service_pb2_grpc,
    training_job_pb2,
    training_job_service_pb2,
    training_job_service_pb2_grpc,
)

TOKEN = "a-token-of-the-tests"

State = training_job_pb2.TrainingJob.State
Event = training_job_pb2.JobEvent

# A step of a watch: an event to send, or a code with which the stream breaks.
WatchStep = Event | grpc.StatusCode


def state_event(number: int, state: int, detail: str = "", seconds: int = 1000) -> Event:
    """The event that a job took a state."""
    event = Event(number=number)
    event.time.seconds = seconds + number
    event.state_change.state = state  # type: ignore[assignment]
    event.state_change.detail = detail
    return event


def abort(context: Any, code: grpc.StatusCode, error: UserError) -> NoReturn:
    """Ends a call as the server does: with ErrorInfo and BadRequest."""
    status = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=str(error))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain="lockstep")
    info.metadata.update({"place": error.violations[0].place, "remedy": error.violations[0].remedy})
    bad = error_details_pb2.BadRequest()
    for violation in error.violations:
        got = f"got {violation.value}; " if violation.value else ""
        bad.field_violations.add(field=violation.place, description=got + violation.remedy, reason=violation.reason)
    for detail in (info, bad) if code is grpc.StatusCode.INVALID_ARGUMENT else (info,):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort raises")


def safetensors(values: bytes) -> bytes:
    """A file with one tensor, `0.dense.weight`."""
    header = json.dumps({"0.dense.weight": {"dtype": "F32", "shape": [len(values) // 4], "data_offsets": [0, len(values)]}})
    return len(header).to_bytes(8, "little") + header.encode() + values


class FakeServer(
    training_job_service_pb2_grpc.TrainingJobServiceServicer,
    dataset_service_pb2_grpc.DatasetServiceServicer,
    cluster_service_pb2_grpc.ClusterServiceServicer,
):
    """Keeps jobs and datasets in dictionaries.

    `failures` are the codes with which the next calls end; `result` is what jobs give; `weights` are the hashes that replays
    of a job give after a step, and `events` what a watch of a job tells, where no other is put in.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, training_job_pb2.TrainingJob] = {}
        self.datasets: dict[str, dataset_service_pb2.Dataset] = {}
        self.requests: list[Any] = []
        self.uploads: list[bytes] = []
        self.failures: deque[grpc.StatusCode] = deque()
        self.refusal: UserError | None = None
        self.held: threading.Event | None = None
        self.cluster: cluster_service_pb2.Cluster | None = None
        self.result: training_job_pb2.Result | None = None
        self.watches: deque[list[WatchStep]] = deque()
        self.weights: dict[str, Callable[[int], str]] = {}
        self.events: dict[str, list[WatchStep]] = {}
        self.download: Callable[[], Iterator[training_job_service_pb2.DownloadModelResponse]] = self.good_download
        self._answers: dict[str, training_job_pb2.TrainingJob] = {}
        self._server = grpc.server(ThreadPoolExecutor(8))
        training_job_service_pb2_grpc.add_TrainingJobServiceServicer_to_server(self, self._server)
        dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(self, self._server)
        cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        """Ends the server."""
        self._server.stop(0).wait(5)

    def _enter(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "this server does not know the token")
        if self.held is not None:
            self.held.wait(10)
        if self.failures:
            context.abort(self.failures.popleft(), "as the test wants it")

    def _job(self, name: str, context: Any) -> training_job_pb2.TrainingJob:
        if name not in self.jobs:
            error = UserError([Violation("name", "", f"there is no job {name}", "JOB_NOT_FOUND")])
            abort(context, grpc.StatusCode.NOT_FOUND, error)
        return self.jobs[name]

    def add_job(self, job_id: str, state: int = State.QUEUED) -> training_job_pb2.TrainingJob:
        """A job that is there already."""
        job = training_job_pb2.TrainingJob(name=f"jobs/{job_id}", state=state)  # type: ignore[arg-type]
        job.create_time.seconds = job.update_time.seconds = 1000
        self.jobs[job.name] = job
        return job

    def CreateTrainingJob(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        if self.refusal is not None:
            abort(context, grpc.StatusCode.INVALID_ARGUMENT, self.refusal)
        if request.training_job.kind == training_job_pb2.TrainingJob.VERIFY:
            return self._replay(request.training_job.replay, context)
        if request.request_id not in self._answers:
            job = training_job_pb2.TrainingJob(name="jobs/digits-mlp-7f3a", spec=request.training_job.spec, state=State.QUEUED)
            job.kind = request.training_job.kind
            job.warnings.append("workers.max is capped at 4")
            job.plan.total_steps = 240
            self._answers[request.request_id] = job
            if not request.validate_only:
                self.jobs[job.name] = job
        return self._answers[request.request_id]

    def _replay(self, replay: training_job_pb2.Replay, context: Any) -> training_job_pb2.TrainingJob:
        original = self._job(replay.job, context)
        job = self.add_job(f"verify-{len(self.jobs)}")
        job.kind, job.plan.total_steps = training_job_pb2.TrainingJob.VERIFY, 240
        job.replay.CopyFrom(replay)
        kept = {one.step: one.weights_sha256 for one in original.result.checkpoints}
        for step in replay.hashed_steps:
            weights = self.weights[replay.job](step)
            job.result.replay.steps.add(step=step, weights_sha256=weights, checkpoint_weights_sha256=kept.get(step, ""))
        self.events[job.name] = [state_event(1, State.SUCCEEDED, "replayed")]
        return job

    def PlanTrainingJob(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        if self.refusal is not None:
            abort(context, grpc.StatusCode.INVALID_ARGUMENT, self.refusal)
        plan = training_job_pb2.Plan(training_rows=1438, validation_rows=359, steps_per_epoch=12, total_steps=240, shards=4)
        plan.layers.add(name="0.dense", output_shape=[128], parameters=8320)
        return training_job_service_pb2.PlanTrainingJobResponse(
            plan=plan, arithmetic_digest="a" * 64, warnings=["a short batch"]
        )

    def GetTrainingJob(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        return self._job(request.name, context)

    def ListTrainingJobs(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        names = sorted(self.jobs)
        begin = int(request.page_token or 0)
        end = begin + 2  # small pages, so that there are several
        page = [self.jobs[name] for name in names[begin:end]]
        token = str(end) if end < len(names) else ""
        return training_job_service_pb2.ListTrainingJobsResponse(training_jobs=page, next_page_token=token)

    def DeleteTrainingJob(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        del self.jobs[self._job(request.name, context).name]
        return empty_pb2.Empty()

    def CancelTrainingJob(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        job = self._job(request.name, context)
        job.state = State.CANCELLING
        return job

    def PauseTrainingJob(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        job = self._job(request.name, context)
        job.state = State.PAUSING if job.state == State.RUNNING else State.PAUSED
        return job

    def ResumeTrainingJob(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        job = self._job(request.name, context)
        if job.state != State.PAUSED:
            said = f"a job that is {State.Name(job.state)} cannot be resumed; nothing was changed"
            error = UserError([Violation("name", request.name, said, "WRONG_STATE")])
            abort(context, grpc.StatusCode.FAILED_PRECONDITION, error)
        job.state = State.QUEUED
        job.spec.workers.MergeFrom(request.workers)
        return job

    def ScaleTrainingJob(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        job = self._job(request.name, context)
        job.spec.workers.MergeFrom(request.workers)
        if job.spec.workers.max > 4:
            job.spec.workers.max = 4
            job.warnings.append("workers.max is 4, not as asked: a mini-batch has 4 shards")
        return job

    def WatchTrainingJob(self, request: Any, context: Any) -> Iterator[Any]:
        self._enter(request, context)
        job = self._job(request.name, context)
        for step in self.watches.popleft() if self.watches else self.events.get(request.name, []):
            if isinstance(step, grpc.StatusCode):
                context.abort(step, "as the test wants it")
            else:
                if step.HasField("state_change"):
                    job.state = step.state_change.state
                    job.status_detail = step.state_change.detail
                    if self.result is not None and step.state_change.state in (State.SUCCEEDED, State.FAILED):
                        job.result.CopyFrom(self.result)
                yield training_job_service_pb2.WatchTrainingJobResponse(event=step)

    def good_download(self) -> Iterator[training_job_service_pb2.DownloadModelResponse]:
        """Manifest and weights as they should be."""
        return self.stream(self.files())

    def files(self, weights: bytes = b"\0\0\x80?" * 1000) -> dict[str, bytes]:
        """The files of a model."""
        content = safetensors(weights)
        record: Any = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = Manifest(
            job_id="digits-mlp-7f3a",
            run_number=1,
            step=240,
            epoch=20,
            arithmetic_digest="a" * 64,
            arithmetic_version=1,
            dataset_digest="d" * 64,
            fingerprint="f" * 64,
            weights_sha256=weights_sha256([("0.dense.weight", weights)]),
            files={"model.safetensors": record},
            spec={},
            input_shape=[64],
            create_time="2026-11-25T00:00:00Z",
        )
        return {"manifest.json": manifest.to_json().encode(), "model.safetensors": content}

    def stream(self, files: dict[str, bytes]) -> Iterator[training_job_service_pb2.DownloadModelResponse]:
        """The files as a download."""
        Response = training_job_service_pb2.DownloadModelResponse
        for name, content in files.items():
            header = training_job_service_pb2.FileHeader(
                name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
            )
            yield Response(header=header)
            for at in range(0, len(content), 1000):
                yield Response(chunk=content[at : at + 1000])

    def DownloadModel(self, request: Any, context: Any) -> Iterator[Any]:
        self._enter(request, context)
        self._job(request.name, context)
        yield from self.download()

    def CreateDataset(self, request_iterator: Any, context: Any) -> Any:
        header = next(request_iterator).header
        self._enter(header, context)
        content = b"".join(piece.chunk for piece in request_iterator)
        self.uploads.append(content)
        if hashlib.sha256(content).hexdigest() != header.sha256:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the bytes are not those announced")
        dataset = dataset_service_pb2.Dataset(
            name=f"datasets/{header.dataset_id}", digest="d" * 64, state=dataset_service_pb2.Dataset.READY
        )
        dataset.schema.rows = 3
        dataset.schema.classes.count = 2
        dataset.warnings.append("the column width is constant")
        self.datasets[dataset.name] = dataset
        return dataset

    def GetDataset(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        return self.datasets[request.name]

    def ListDatasets(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        return dataset_service_pb2.ListDatasetsResponse(datasets=self.datasets.values())

    def DeleteDataset(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        del self.datasets[request.name]
        return empty_pb2.Empty()

    def GetCluster(self, request: Any, context: Any) -> Any:
        self._enter(request, context)
        if self.cluster is not None:
            return self.cluster
        cluster = cluster_service_pb2.Cluster(server_version="0.1.0", arithmetic_version=1, slots=2, agent_connected=True)
        cluster.nodes.add(node_id=uuid.UUID(int=1).hex, address="127.0.0.1", slots=2)
        return cluster
