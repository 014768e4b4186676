"""What people ask of jobs: each function checks, does one transaction, and wakes whom it concerns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeVar, final

from sqlalchemy import Connection, Row

from lockstep.contract.digests import request_digest
from lockstep.contract.errors import UserError
from lockstep.contract.rules import check
from lockstep.v1 import training_job_service_pb2 as pb
from lockstep.v1.dataset_service_pb2 import DatasetSchema
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import Beat, JobEvent, TrainingJob
from services import limits, pages
from services.clock import Clock, timestamp
from services.jobs import filters, lifecycle, scaling
from services.jobs.answers import draft_message, etag, job_message
from services.jobs.names import dataset_version, job_id, new_job_id
from services.jobs.replays import prepare_replay, still_replayable
from services.jobs.submission import Submission, Version, kind_of, prepare
from services.jobs.transitions import TERMINAL, State
from services.runs.dispatch import Dispatcher
from services.store import Store, events
from services.store import datasets as dataset_rows
from services.store import jobs as rows
from services.store import requests as request_rows
from services.wakeups import Wakeups

Created = TypeVar("Created", pb.CreateTrainingJobRequest, pb.PlanTrainingJobRequest)
Steering = pb.PauseTrainingJobRequest | pb.ResumeTrainingJobRequest | pb.ScaleTrainingJobRequest

METHOD: Final = "CreateTrainingJob"
_ENDING: Final = (State.PAUSING, State.CANCELLING)
_WITH_RUN: Final = (State.STARTING, State.RUNNING, State.RECOVERING, *_ENDING)


@final
class JobDesk:
    """The verbs on jobs. `away` gives a clause about an agent that is away, empty while it is there."""

    def __init__(
        self, store: Store, dispatcher: Dispatcher, wakeups: Wakeups, clock: Clock, away: Callable[[], str] = lambda: ""
    ) -> None:
        self._store, self._dispatcher, self._wakeups, self._clock, self._away = store, dispatcher, wakeups, clock, away

    async def create(self, request: pb.CreateTrainingJobRequest) -> TrainingJob:
        """Stores a job, or only checks it. The same request_id gives the same job."""
        _check_around(request)
        digest = request_digest(request)
        request_id = "" if request.validate_only else request.request_id
        known = await self._store.run(lambda c: request_rows.answered(c, METHOD, request_id, digest))
        if known:
            return await self.get(known)
        submission = await self.prepare(request.training_job)
        if request.validate_only:
            return draft_message(request.training_job_id or new_job_id(submission.spec.name), submission)
        now = self._clock()

        def store(connection: Connection) -> TrainingJob:
            earlier = request_rows.answered(connection, METHOD, request_id, digest)
            if earlier:  # the same request came twice at once
                return self._message(connection, lifecycle.must_find(connection, job_id(earlier)))
            still_there(connection, submission.version)
            still_replayable(connection, submission)
            identity = request.training_job_id or _free_id(connection, submission.spec.name)
            lifecycle.create(connection, identity, submission, now)
            request_rows.record(connection, METHOD, request_id, digest, f"jobs/{identity}", now)
            return self._message(connection, lifecycle.must_find(connection, identity))

        message = await self._store.run(store)
        self._dispatcher.kick()
        return message

    async def plan(self, request: pb.PlanTrainingJobRequest) -> pb.PlanTrainingJobResponse:
        """Says what a job would do."""
        _check_around(request)
        submission = await self.prepare(request.training_job)
        return pb.PlanTrainingJobResponse(
            spec=submission.spec,
            plan=submission.plan,
            arithmetic_digest=submission.arithmetic_digest,
            warnings=submission.warnings,
        )

    async def prepare(self, job: TrainingJob) -> Submission:
        """Checks and fills in a job against the datasets and jobs that are there."""
        kind = kind_of(job)
        if kind == TrainingJob.VERIFY:
            return await self._store.run(lambda connection: prepare_replay(connection, job))
        version, known = await self._store.run(lambda connection: find_version(connection, job.spec))
        return prepare(job.spec, version, known, kind)

    async def get(self, name: str) -> TrainingJob:
        """One job."""
        identity = job_id(name)
        return await self._store.run(lambda c: self._message(c, lifecycle.must_find(c, identity)))

    async def list(self, request: pb.ListTrainingJobsRequest) -> pb.ListTrainingJobsResponse:
        """A page of jobs."""
        _refuse(request)
        size = pages.page_size(request.page_size)
        condition, descending = filters.condition(request.filter), filters.order(request.order_by)
        last = pages.decode(request.page_token, (int, str), request.filter, request.order_by)
        after = (int(last[0]), str(last[1])) if last else None

        def read(connection: Connection) -> pb.ListTrainingJobsResponse:
            found = rows.page(connection, condition, descending, after, size + 1)
            answer, taken = pb.ListTrainingJobsResponse(), 0
            for job in found[:size]:
                message = self._message(connection, job)
                taken += message.ByteSize()
                if taken > limits.PAGE_BYTES and answer.training_jobs:
                    break  # a page may be shorter than asked
                answer.training_jobs.append(message)
            if len(found) > len(answer.training_jobs):
                end = found[len(answer.training_jobs) - 1]
                answer.next_page_token = pages.encode([end.create_time, end.id], request.filter, request.order_by)
            return answer

        return await self._store.run(read)

    async def cancel(self, name: str) -> TrainingJob:
        """Asks for a job's end."""
        identity, now = job_id(name), self._clock()
        await self._store.run(lambda connection: lifecycle.cancel(connection, identity, now))
        self._changed(identity)
        return await self.get(name)

    async def pause(self, request: pb.PauseTrainingJobRequest) -> TrainingJob:
        """Asks for a job's rest."""
        return await self._steer("PauseTrainingJob", request, lifecycle.pause)

    async def resume(self, request: pb.ResumeTrainingJobRequest) -> TrainingJob:
        """Puts a paused job back into the queue, with other workers where they are given."""
        workers = request.workers if request.HasField("workers") else None

        def resume(connection: Connection, identity: str, now: int) -> None:
            lifecycle.resume(connection, identity, now, workers, request.accept_new_arithmetic)

        return await self._steer("ResumeTrainingJob", request, resume)

    async def scale(self, request: pb.ScaleTrainingJobRequest) -> TrainingJob:
        """Changes how many workers a job may have."""
        return await self._steer("ScaleTrainingJob", request, lambda c, job, now: lifecycle.scale(c, job, request.workers, now))

    async def _steer(self, method: str, request: Steering, act: Callable[[Connection, str, int], None]) -> TrainingJob:
        """Acts on a job, once for the same request_id, and gives the job as it is then."""
        identity, now, digest = job_id(request.name), self._clock(), request_digest(request)
        _refuse(request)

        def steer(connection: Connection) -> None:
            if not request_rows.answered(connection, method, request.request_id, digest):
                seen = etag(lifecycle.must_find(connection, identity))
                if request.etag and request.etag != seen:
                    remedy = "somebody has paused, resumed, scaled or cancelled the job since; look at it again"
                    raise UserError.of("etag", request.etag, remedy, "ETAG_DIFFERS")
                act(connection, identity, now)
                request_rows.record(connection, method, request.request_id, digest, request.name, now)

        await self._store.run(steer)
        self._changed(identity)
        return await self.get(request.name)

    async def delete(self, name: str) -> None:
        """Removes an ended job."""
        identity, now = job_id(name), self._clock()
        await self._store.run(lambda connection: lifecycle.delete(connection, identity, now))
        self._changed(identity)

    async def watch(self, request: pb.WatchTrainingJobRequest) -> AsyncIterator[JobEvent]:
        """The job's events behind a number, until it has ended; a beat when nothing happens."""
        identity, number = job_id(request.name), min(request.after_number, (1 << 63) - 1)

        def read(connection: Connection) -> tuple[list[JobEvent], bool]:
            job = lifecycle.must_find(connection, identity)
            return events.after(connection, identity, number, limits.WATCH_BATCH), State(job.state) in TERMINAL

        with self._wakeups.watching(identity) as changed:
            while True:
                if self._wakeups.stopping:
                    raise UserError.of("", "", "this server stops; watch again when it is back", "STOPPING")
                changed.clear()
                found, ended = await self._store.run(read)
                for event in found:
                    number = event.number
                    yield event
                if ended and len(found) < limits.WATCH_BATCH:
                    return
                if found:
                    continue
                try:
                    async with asyncio.timeout(limits.BEAT_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    yield JobEvent(time=timestamp(self._clock()), beat=Beat())

    def _changed(self, identity: str) -> None:
        self._wakeups.wake([identity])
        self._dispatcher.kick()

    def _message(self, connection: Connection, job: Row[Any]) -> TrainingJob:
        return job_message(connection, job, self._detail(connection, job))

    def _detail(self, connection: Connection, job: Row[Any]) -> str:
        """What the job waits for now."""
        state = State(job.state)
        detail = self._dispatcher.details.get(job.id, "") if state in (State.QUEUED, State.RECOVERING) else ""
        run = rows.active_run(connection, job.id) if state in _WITH_RUN else None
        resizing = scaling.pending(job, run) if run is not None and state not in _ENDING else ""
        away = self._away() if state in _WITH_RUN else ""
        return "; ".join(part for part in (detail or job.detail, resizing, away) if part)


def find_version(connection: Connection, spec: JobSpec) -> tuple[Version | None, list[str]]:
    """The dataset version that a spec names, and the names there are if there is none such."""
    try:
        dataset_id, prefix = dataset_version(spec.dataset)
    except UserError:
        return None, []  # the rules of the field say what is wrong
    row = dataset_rows.find_version(connection, dataset_id, prefix)
    if row is None:
        return None, dataset_rows.ids(connection)
    return Version(dataset_id, row.digest, DatasetSchema.FromString(row.schema)), []


def still_there(connection: Connection, version: Version) -> None:
    """The dataset may have been deleted since it was looked up. Raises UserError."""
    if dataset_rows.find_version(connection, version.dataset_id, version.digest) is None:
        remedy = "the dataset was deleted just now; register it again"
        raise UserError.of("dataset", f"datasets/{version.dataset_id}", remedy, "UNKNOWN_DATASET")


def _free_id(connection: Connection, word: str) -> str:
    for _ in range(limits.NAME_TRIES):
        identity = new_job_id(word)
        if rows.find(connection, identity) is None and not rows.is_being_removed(connection, identity):
            return identity
    remedy = "many jobs have this name; give training_job_id, or another name"
    raise UserError.of("name", word, remedy, "JOB_EXISTS")


def _refuse(request: Any) -> None:
    wrong = check(request)
    if wrong:
        raise UserError(wrong)


def _check_around(request: Created) -> None:
    """The rules of everything but the spec, which is checked with all that hangs on it, its places as in a job file."""
    around = type(request)()
    around.CopyFrom(request)
    around.training_job.spec.Clear()
    wrong = [violation for violation in check(around) if not violation.place.startswith("training_job.spec")]
    if wrong:
        raise UserError(wrong)
