"""The stand-in for the API server, with a real agent that is connected to a Ray of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.coordinator.agent_process import AgentProcess
from tests.coordinator.api_server import ApiServer
from tests.coordinator.ray_head import RayHead

WAIT_S = 40


@contextmanager
def server_on_ray(files: Path, cpus: int, environment: Mapping[str, str] | None = None) -> Iterator[ApiServer]:
    """The server, once the agent has told of its nodes; agent and workers have these variables. All of it ends behind it."""
    head = RayHead(cpus, environment)
    server = ApiServer()
    server.start()
    agent_process = AgentProcess(server.port, files, ray_address=head.address, environment=head.environment)
    try:
        server.wait(lambda: server.capacity.nodes, WAIT_S)
        yield server
    finally:
        code = agent_process.stop()
        server.stop()
        head.stop()
    assert code == 0 and not server.violations
