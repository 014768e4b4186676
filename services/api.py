"""The API server put together: store, dispatcher, desks, listeners. Started and stopped as one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from lockstep.contract.errors import LockstepError
from lockstep.internal.v1 import agent_service_pb2_grpc
from lockstep.v1 import (
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    dataset_service_pb2,
    dataset_service_pb2_grpc,
    training_job_service_pb2,
    training_job_service_pb2_grpc,
)
from services import limits
from services.addresses import Address
from services.clock import Clock, wall_clock
from services.datasets.folders import DatasetFolders
from services.datasets.ingest import ingest
from services.datasets.uploads import Ingest, Uploads
from services.http import HttpServer, application
from services.jobs.desk import JobDesk
from services.jobs.models import Models
from services.metrics import CallMetrics, Snapshot, exposition, read_jobs
from services.processes.owners import bind, check_free, port_taken
from services.rpc.cluster import ClusterServicer
from services.rpc.datasets import DatasetServicer
from services.rpc.gate import Gate
from services.rpc.jobs import JobServicer
from services.rpc.tokens import Tokens
from services.runs.desk import AgentDesk
from services.runs.dispatch import Dispatcher
from services.store import Store
from services.store import requests as request_rows
from services.wakeups import Wakeups

log = structlog.get_logger()

CLUSTER: Final = cluster_service_pb2.DESCRIPTOR.services_by_name["ClusterService"].full_name
PUBLIC: Final = (
    training_job_service_pb2.DESCRIPTOR.services_by_name["TrainingJobService"].full_name,
    dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"].full_name,
    CLUSTER,
)
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an API server is started with."""

    data: Path
    listen: Address
    http_listen: Address
    agent_listen: Address
    tokens: Sequence[str]
    agent_tokens: Sequence[str]
    allowed_hosts: Sequence[str] = ()
    metrics_without_token: bool = False
    upload_bytes: int = limits.UPLOAD_BYTES
    clock: Clock = wall_clock
    ingest: Ingest = field(default=ingest)


@final
class ApiServer:
    """One API server. `start` raises UserError for a folder or a port that somebody else has."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stopped = asyncio.Event()  # set when it cannot go on by itself
        self.failure = ""
        self._tasks: list[asyncio.Task[Any]] = []
        self._loop = asyncio.get_running_loop()
        self._open = contextlib.AsyncExitStack()
        self.ports: dict[str, int] = {}

    async def start(self) -> None:
        """Opens the store, sweeps what was left half done, and listens."""
        settings = self.settings
        for flag, address in self._addresses().items():
            check_free(flag, address.host, address.port)
        self.store = await asyncio.to_thread(Store, settings.data / "store", self._store_broken)
        self._open.callback(self.store.close)
        files = settings.data / "files"
        files.mkdir(parents=True, exist_ok=True)
        wakeups = Wakeups()
        self.wakeups, self.calls = wakeups, CallMetrics()
        self.tokens = Tokens(settings.tokens, settings.data / "store" / "tokens.json")
        self.dispatcher = Dispatcher(self.store, files, wakeups, settings.clock)
        self.agent_desk = AgentDesk(self.store, self.dispatcher, wakeups, settings.clock, self._agent_changed)
        desk = JobDesk(self.store, self.dispatcher, wakeups, settings.clock, self.agent_desk.away_clause)
        folders = await asyncio.to_thread(DatasetFolders, files)
        self.uploads = Uploads(self.store, folders, settings.clock, settings.upload_bytes, settings.ingest)
        await self.uploads.sweep()
        self.health = health_aio.HealthServicer()
        await self._serve_public(JobServicer(desk, Models(self.store, files)), DatasetServicer(self.store, self.uploads))
        await self._serve_agent()
        await self._serve_http()
        self._task(self.dispatcher.run())
        self._task(self._keep_house())
        self.dispatcher.kick()

    async def stop(self) -> None:
        """Drains and closes everything, within a deadline."""
        if hasattr(self, "health"):
            await self.health.enter_graceful_shutdown()
            self.wakeups.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._open.aclose()

    def _addresses(self) -> dict[str, Address]:
        settings = self.settings
        return {"--port": settings.listen, "--http-port": settings.http_listen, "--agent-port": settings.agent_listen}

    async def _serve_public(self, jobs: JobServicer, datasets: DatasetServicer) -> None:
        server = _grpc_server(Gate(self.tokens, self.calls.observe), limits.REQUEST_BYTES)
        training_job_service_pb2_grpc.add_TrainingJobServiceServicer_to_server(jobs, server)
        dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server(datasets, server)
        cluster = ClusterServicer(self.agent_desk, self.dispatcher)
        cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(cluster, server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((*PUBLIC, health_name, reflection.SERVICE_NAME), server)
        for name in ("", *PUBLIC):
            await self.health.set(name, _NOT_SERVING if name == CLUSTER else _SERVING)
        self.ports["grpc"] = await self._listen(server, "--port", self.settings.listen)

    async def _serve_agent(self) -> None:
        tokens = Tokens(self.settings.agent_tokens)
        server = _grpc_server(Gate(tokens, self.calls.observe), limits.AGENT_MESSAGE_BYTES)
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(self.agent_desk, server)
        self.ports["agent"] = await self._listen(server, "--agent-port", self.settings.agent_listen)

    async def _serve_http(self) -> None:
        address = self.settings.http_listen
        listener = bind("--http-port", address.host, address.port)
        self.ports["http"] = listener.getsockname()[1]
        app = application(
            self._metrics,
            lambda: self.store.broken,
            self.tokens,
            self.settings.metrics_without_token,
            {*self.settings.allowed_hosts, address.host},
        )
        server = HttpServer(app, listener)
        serving = asyncio.create_task(server.run_until_stopped())

        async def close() -> None:
            server.should_exit = True
            await serving
            listener.close()

        self._open.push_async_callback(close)

    async def _listen(self, server: grpc.aio.Server, flag: str, address: Address) -> int:
        try:
            port = server.add_insecure_port(str(address))
        except RuntimeError:
            port = 0
        if not port:
            raise port_taken(flag, address.port)
        await server.start()
        self._open.push_async_callback(server.stop, limits.DRAIN_SECONDS)
        return int(port)

    async def _metrics(self) -> bytes:
        jobs, counts = await self.store.run(read_jobs)
        snapshot = Snapshot(
            jobs, counts, self.dispatcher.slots, self.dispatcher.in_use, self.agent_desk.connected, self.wakeups.count
        )
        return exposition(snapshot, self.calls)

    async def _keep_house(self) -> None:
        while True:
            now = self.settings.clock()
            try:
                await self.store.run(functools.partial(request_rows.purge, now=now))
            except LockstepError as error:  # the store says so to everybody; this comes again in a minute
                log.warning("housekeeping failed", reason=str(error))
            await asyncio.sleep(limits.HOUSEKEEPING_SECONDS)

    def _agent_changed(self) -> None:
        status = _SERVING if self.agent_desk.connected else _NOT_SERVING
        self._task(self.health.set(CLUSTER, status))

    def _store_broken(self, reason: str) -> None:
        """Called in the store's thread: nothing can be promised any more, so the process ends and is started anew."""

        def end() -> None:
            self.failure = f"the store cannot be written: {reason}"
            self._task(self.health.enter_graceful_shutdown())
            self.stopped.set()

        self._loop.call_soon_threadsafe(end)

    def _task(self, work: Any) -> None:
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(asyncio.ensure_future(work))


def _grpc_server(gate: Gate, request_bytes: int) -> grpc.aio.Server:
    options = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", request_bytes),
        ("grpc.max_send_message_length", max(limits.RESPONSE_BYTES, request_bytes)),
        ("grpc.max_metadata_size", limits.METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", limits.METADATA_BYTES),
        ("grpc.max_concurrent_streams", limits.CONCURRENT_STREAMS),
        ("grpc.keepalive_time_ms", int(limits.KEEPALIVE_SECONDS * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.KEEPALIVE_SECONDS * 500)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", int(limits.CLIENT_PING_SECONDS * 1000)),
        ("grpc.http2.min_ping_interval_without_data_ms", int(limits.CLIENT_PING_SECONDS * 1000)),
    ]
    return grpc.aio.server(interceptors=[gate], options=options)
