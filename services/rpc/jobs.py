"""TrainingJobService: takes messages apart and puts answers together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, final

from google.protobuf.empty_pb2 import Empty

from lockstep.v1 import training_job_service_pb2 as pb
from lockstep.v1.training_job_pb2 import TrainingJob
from lockstep.v1.training_job_service_pb2_grpc import TrainingJobServiceServicer
from services.jobs.desk import JobDesk
from services.jobs.models import Models


@final
class JobServicer(TrainingJobServiceServicer):
    """The verbs on jobs."""

    def __init__(self, desk: JobDesk, models: Models) -> None:
        self._desk, self._models = desk, models

    async def CreateTrainingJob(self, request: pb.CreateTrainingJobRequest, context: Any) -> TrainingJob:
        return await self._desk.create(request)

    async def GetTrainingJob(self, request: pb.GetTrainingJobRequest, context: Any) -> TrainingJob:
        return await self._desk.get(request.name)

    async def ListTrainingJobs(self, request: pb.ListTrainingJobsRequest, context: Any) -> pb.ListTrainingJobsResponse:
        return await self._desk.list(request)

    async def DeleteTrainingJob(self, request: pb.DeleteTrainingJobRequest, context: Any) -> Empty:
        await self._desk.delete(request.name)
        return Empty()

    async def CancelTrainingJob(self, request: pb.CancelTrainingJobRequest, context: Any) -> TrainingJob:
        return await self._desk.cancel(request.name)

    async def PauseTrainingJob(self, request: pb.PauseTrainingJobRequest, context: Any) -> TrainingJob:
        return await self._desk.pause(request)

    async def ResumeTrainingJob(self, request: pb.ResumeTrainingJobRequest, context: Any) -> TrainingJob:
        return await self._desk.resume(request)

    async def ScaleTrainingJob(self, request: pb.ScaleTrainingJobRequest, context: Any) -> TrainingJob:
        return await self._desk.scale(request)

    async def WatchTrainingJob(
        self, request: pb.WatchTrainingJobRequest, context: Any
    ) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        async for event in self._desk.watch(request):
            yield pb.WatchTrainingJobResponse(event=event)

    async def PlanTrainingJob(self, request: pb.PlanTrainingJobRequest, context: Any) -> pb.PlanTrainingJobResponse:
        return await self._desk.plan(request)

    async def DownloadModel(self, request: pb.DownloadModelRequest, context: Any) -> AsyncIterator[pb.DownloadModelResponse]:
        async for part in self._models.download(request):
            yield part
