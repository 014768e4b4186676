"""DatasetService: takes messages apart and puts answers together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, final

from google.protobuf.empty_pb2 import Empty

from lockstep.contract.errors import UserError
from lockstep.contract.rules import check
from lockstep.v1 import dataset_service_pb2 as pb
from lockstep.v1.dataset_service_pb2_grpc import DatasetServiceServicer
from services import pages
from services.datasets.uploads import Uploads, must_find
from services.jobs.names import dataset_id
from services.store import Store
from services.store import datasets as rows


@final
class DatasetServicer(DatasetServiceServicer):
    """The verbs on datasets."""

    def __init__(self, store: Store, uploads: Uploads) -> None:
        self._store, self._uploads = store, uploads

    async def CreateDataset(self, request_iterator: AsyncIterator[pb.CreateDatasetRequest], context: Any) -> pb.Dataset:
        return await self._uploads.take_in(request_iterator)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Any) -> pb.Dataset:
        identity = dataset_id(request.name)
        found = await self._store.run(lambda connection: rows.find(connection, identity))
        state = self._uploads.under_way.get(identity)
        if found is None and state is not None:
            return pb.Dataset(name=request.name, state=state)
        return await self._store.run(lambda connection: must_find(connection, identity)) if found is None else found

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Any) -> pb.ListDatasetsResponse:
        if wrong := check(request):
            raise UserError(wrong)
        size, last = pages.page_size(request.page_size), pages.decode(request.page_token, (str,), "datasets")
        found = await self._store.run(lambda connection: rows.page(connection, str(last[0]) if last else "", size + 1))
        token = pages.encode([dataset_id(found[size - 1].name)], "datasets") if len(found) > size else ""
        return pb.ListDatasetsResponse(datasets=found[:size], next_page_token=token)

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Any) -> Empty:
        await self._uploads.remove(dataset_id(request.name))
        return Empty()
