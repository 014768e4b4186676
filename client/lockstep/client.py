"""The client: one method per thing that can be asked of a server, synchronous, with a deadline on each call."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, final

from google.protobuf.message import Message

from lockstep import downloads, spec, uploads, watching
from lockstep.address import find_token, server_address
from lockstep.connection import DEADLINE_S, Connection
from lockstep.contract import rules
from lockstep.contract.errors import UserError
from lockstep.contract.manifest import Manifest
from lockstep.failures import WaitTimeout
from lockstep.names import dataset_name, job_name, short
from lockstep.v1 import (
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    dataset_service_pb2,
    dataset_service_pb2_grpc,
    job_spec_pb2,
    training_job_pb2,
    training_job_service_pb2,
    training_job_service_pb2_grpc,
)

PAGE_SIZE = 200

Asked = TypeVar("Asked", bound=Message)
Answer = TypeVar("Answer")

# A job: the spec itself, the path of a job file, or the content of one as a mapping.
Job = job_spec_pb2.JobSpec | str | os.PathLike[str] | Mapping[str, Any] | spec.JobFile


@final
class Client:
    """A connection to a Lockstep server.

    `server` is "host:port"; without it LOCKSTEP_SERVER, then 127.0.0.1:7460. The token is `token`, else the content of
    `token_file`, else that of LOCKSTEP_TOKEN_FILE, else that of the user's file for the server. Methods raise UserError for
    what was asked wrongly, ServerUnavailable when the server cannot be reached in time, InternalError for its faults. Names of
    jobs and datasets may be short: "digits" for "datasets/digits".
    """

    def __init__(
        self,
        server: str | None = None,
        token: str | None = None,
        *,
        token_file: str | os.PathLike[str] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        address = server_address(server)
        self._connection = Connection(address, find_token(address, token, token_file), deadline_s)
        self._jobs = training_job_service_pb2_grpc.TrainingJobServiceStub(self._connection.channel)
        self._datasets = dataset_service_pb2_grpc.DatasetServiceStub(self._connection.channel)
        self._cluster = cluster_service_pb2_grpc.ClusterServiceStub(self._connection.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and all that runs on it."""
        self._connection.close()

    @property
    def server(self) -> str:
        """The server's "host:port"."""
        return str(self._connection.address)

    # Jobs

    def submit(
        self,
        job: Job,
        *,
        kind: training_job_pb2.TrainingJob.Kind.ValueType = training_job_pb2.TrainingJob.KIND_UNSPECIFIED,
        job_id: str = "",
        request_id: str = "",
        validate_only: bool = False,
    ) -> training_job_pb2.TrainingJob:
        """Submits a job; it is on the server's disk when this returns. With `validate_only` it is only checked.

        `kind` says what is done with it: without one it trains; GRADIENT_CHECK compares gradients.

        The call may be repeated by the client itself; a `request_id` (UUID4) of your own makes it safe for you as well.
        """
        file = _job_file(job)
        request = training_job_service_pb2.CreateTrainingJobRequest(
            training_job=training_job_pb2.TrainingJob(kind=kind, spec=file.spec),
            training_job_id=job_id,
            request_id=_id(request_id),
            validate_only=validate_only,
        )
        return self._located(file, lambda: self._connection.call(self._jobs.CreateTrainingJob, _checked(request)))

    def verify(
        self,
        name: str,
        *,
        step: int | None = None,
        hashed_steps: Iterable[int] = (),
        job_id: str = "",
        request_id: str = "",
        validate_only: bool = False,
    ) -> training_job_pb2.TrainingJob:
        """Submits a job of kind VERIFY, which takes steps of an ended training job again and compares its checkpoint of `step`.

        Without a step it is the last checkpoint. With `hashed_steps` the weights after these are hashed, and without a step
        nothing is compared. What was found stands in the job's result, once it has ended: `result.replay`.
        """
        replay = _checked(training_job_pb2.Replay(job=job_name(name), step=step, hashed_steps=hashed_steps))
        request = training_job_service_pb2.CreateTrainingJobRequest(
            training_job=training_job_pb2.TrainingJob(kind=training_job_pb2.TrainingJob.VERIFY, replay=replay),
            training_job_id=job_id,
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
        )
        return self._connection.call(self._jobs.CreateTrainingJob, request)

    def plan(self, job: Job) -> training_job_service_pb2.PlanTrainingJobResponse:
        """What a job would do: rows, steps, shards, memory; nothing is stored."""
        file = _job_file(job)
        request = training_job_service_pb2.PlanTrainingJobRequest(training_job=training_job_pb2.TrainingJob(spec=file.spec))
        return self._located(file, lambda: self._connection.call(self._jobs.PlanTrainingJob, _checked(request)))

    def get(self, name: str) -> training_job_pb2.TrainingJob:
        """One job as it stands."""
        request = training_job_service_pb2.GetTrainingJobRequest(name=job_name(name))
        return self._connection.call(self._jobs.GetTrainingJob, _checked(request))

    def list(self, filter: str = "", order_by: str = "") -> Iterator[training_job_pb2.TrainingJob]:
        """All jobs that fit, newest first, page by page as they are asked for."""
        token = ""
        while True:
            request = training_job_service_pb2.ListTrainingJobsRequest(
                page_size=PAGE_SIZE, page_token=token, filter=filter, order_by=order_by
            )
            answer = self._connection.call(self._jobs.ListTrainingJobs, _checked(request))
            yield from answer.training_jobs
            if not (token := answer.next_page_token):
                return

    def cancel(self, name: str) -> training_job_pb2.TrainingJob:
        """Asks for a job's end; its last checkpoint is kept."""
        request = training_job_service_pb2.CancelTrainingJobRequest(name=job_name(name))
        return self._connection.call(self._jobs.CancelTrainingJob, _checked(request))

    def pause(self, name: str, *, etag: str = "", request_id: str = "") -> training_job_pb2.TrainingJob:
        """Asks for a rest at the next stretch's end; `wait(name, {PAUSED})` waits for it.

        With the `etag` of the job as it was read, this, resume and scale are refused where somebody has steered the job since.
        """
        request = training_job_service_pb2.PauseTrainingJobRequest(name=job_name(name), etag=etag, request_id=_id(request_id))
        return self._connection.call(self._jobs.PauseTrainingJob, _checked(request))

    def resume(
        self,
        name: str,
        *,
        min: int | None = None,
        max: int | None = None,
        accept_new_arithmetic: bool = False,
        etag: str = "",
        request_id: str = "",
    ) -> training_job_pb2.TrainingJob:
        """Puts a paused job back into the queue, with other bounds of its workers where they are given."""
        bounds = None if min is None and max is None else job_spec_pb2.Workers(min=min, max=max)
        request = training_job_service_pb2.ResumeTrainingJobRequest(
            name=job_name(name),
            workers=bounds,
            accept_new_arithmetic=accept_new_arithmetic,
            etag=etag,
            request_id=_id(request_id),
        )
        return self._connection.call(self._jobs.ResumeTrainingJob, _checked(request))

    def scale(
        self, name: str, *, min: int | None = None, max: int | None = None, etag: str = "", request_id: str = ""
    ) -> training_job_pb2.TrainingJob:
        """Changes how many workers a job may have; a bound that is not given stays.

        Where that is not so at once, the answer's `status_detail` says when.
        """
        request = training_job_service_pb2.ScaleTrainingJobRequest(
            name=job_name(name), workers=job_spec_pb2.Workers(min=min, max=max), etag=etag, request_id=_id(request_id)
        )
        return self._connection.call(self._jobs.ScaleTrainingJob, _checked(request))

    def delete(self, name: str) -> None:
        """Removes an ended job, its checkpoints and its events."""
        request = training_job_service_pb2.DeleteTrainingJobRequest(name=job_name(name))
        self._connection.call(self._jobs.DeleteTrainingJob, _checked(request))

    def watch(
        self,
        name: str,
        *,
        after_number: int = 0,
        timeout_s: float | None = None,
        away_s: float = watching.AWAY_S,
        on_away: Callable[[float], None] = lambda seconds: None,
    ) -> Iterator[training_job_pb2.JobEvent]:
        """The events of a job after a number, until its end; a broken stream is taken up again after the last one.

        `on_away` is called when the server goes away, with the seconds for which it will be awaited.
        """
        return watching.watch(self._connection, job_name(name), after_number, timeout_s, away_s, on_away)

    def wait(
        self,
        name: str,
        states: Collection[training_job_pb2.TrainingJob.State.ValueType] = watching.ENDED,
        *,
        timeout_s: float | None = None,
    ) -> training_job_pb2.TrainingJob:
        """Waits until a job is in one of `states`, or has ended in another; returns it. Raises WaitTimeout."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        first = self.get(name)
        if first.state in states or first.state in watching.ENDED:
            return first
        known = first.update_time.ToNanoseconds()
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            for event in self.watch(name, timeout_s=left):
                # What came before the first look is history.
                if event.HasField("state_change") and event.time.ToNanoseconds() > known and event.state_change.state in states:
                    break
        except WaitTimeout:
            state = training_job_pb2.TrainingJob.State.Name(self.get(name).state)
            further = f"`lockstep resume {short(job_name(name))}` lets it go on" if state == "PAUSED" else "it goes on"
            raise WaitTimeout(job_name(name), f"it is still {state} after {timeout_s:g} s; {further}") from None
        return self.get(name)

    def pull_model(
        self,
        name: str,
        folder: str | os.PathLike[str],
        *,
        step: int | None = None,
        progress: downloads.Progress | None = None,
    ) -> Manifest:
        """Takes the model of a job's checkpoint home: model.safetensors and manifest.json, checked, into `folder`."""
        _checked(training_job_service_pb2.DownloadModelRequest(name=job_name(name), step=step))
        return downloads.pull(self._connection, job_name(name), folder, step, progress)

    # Datasets

    def push_dataset(
        self,
        path: str | os.PathLike[str],
        name: str,
        *,
        label: str | None = None,
        inputs: str | None = None,
        labels: str | None = None,
        delimiter: str | None = None,
        decimal: str | None = None,
        skip_lines: int | None = None,
        progress: uploads.Progress | None = None,
    ) -> dataset_service_pb2.Dataset:
        """Registers a file as a dataset: an .npz (arrays `inputs` and `labels`, else x and y) or a .csv (column `label`)."""
        header = uploads.header_for(
            Path(path),
            name,
            label=label,
            inputs=inputs,
            labels=labels,
            delimiter=delimiter,
            decimal=decimal,
            skip_lines=skip_lines,
        )
        return uploads.send(self._connection, Path(path), header, progress)

    def get_dataset(self, name: str) -> dataset_service_pb2.Dataset:
        """One dataset."""
        request = dataset_service_pb2.GetDatasetRequest(name=dataset_name(name))
        return self._connection.call(self._datasets.GetDataset, _checked(request))

    def list_datasets(self) -> Iterator[dataset_service_pb2.Dataset]:
        """All datasets by name, page by page as they are asked for."""
        token = ""
        while True:
            request = dataset_service_pb2.ListDatasetsRequest(page_size=PAGE_SIZE, page_token=token)
            answer = self._connection.call(self._datasets.ListDatasets, request)
            yield from answer.datasets
            if not (token := answer.next_page_token):
                return

    def delete_dataset(self, name: str) -> None:
        """Removes a dataset and its versions; refused while a live job uses one."""
        request = dataset_service_pb2.DeleteDatasetRequest(name=dataset_name(name))
        self._connection.call(self._datasets.DeleteDataset, _checked(request))

    # The cluster

    def cluster(self) -> cluster_service_pb2.Cluster:
        """The cluster: version, agent, nodes, slots."""
        return self._connection.call(self._cluster.GetCluster, cluster_service_pb2.GetClusterRequest())

    def version(self) -> str:
        """The server's version."""
        return self.cluster().server_version

    def _located(self, file: spec.JobFile, call: Callable[[], Answer]) -> Answer:
        """What `call` returns; violations that the server found get their line and column in the job file."""
        try:
            return call()
        except UserError as error:
            raise UserError([file.located(violation) for violation in error.violations], error.reason) from error


def _job_file(job: Job) -> spec.JobFile:
    if isinstance(job, spec.JobFile):
        return job
    if isinstance(job, job_spec_pb2.JobSpec):
        return spec.JobFile("", job)
    if isinstance(job, Mapping):
        return spec.parse(json.dumps(job), "job")
    return spec.read(job)


def _id(request_id: str) -> str:
    """A request's id; a new one makes it safe for the client itself to repeat the request."""
    return request_id or str(uuid.uuid4())


def _checked(request: Asked) -> Asked:
    """The request, if it keeps the rules of its fields. Raises UserError; the way to the server is saved."""
    if violations := rules.check(request):
        raise UserError(violations)
    return request
