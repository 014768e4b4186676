"""`lockstep-server health`: whether an API server, or this machine's Ray node, does its work. For container health checks."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lockstep.contract.errors import UserError
from services.commands.settings import FAILED, GRPC_PORT, reports_errors, setting, speak

SECONDS = 5.0


@click.command()
@setting("--grpc", "address", env="HEALTH_GRPC", default=f"127.0.0.1:{GRPC_PORT}", help="The API server, HOST:PORT.")
@click.option("--service", default="", help="One service, such as lockstep.v1.ClusterService.")
@click.option("--ray", is_flag=True, help="Look at the Ray node of this machine instead.")
@reports_errors
def health(address: str, service: str, ray: bool) -> None:
    """Prints SERVING and ends with 0, or says what is wrong and ends with 1."""
    wrong = _ray() if ray else _grpc(address, service)
    if wrong:
        speak(f"lockstep-server: {wrong}")
        sys.exit(FAILED)
    click.echo("SERVING")


def _grpc(address: str, service: str) -> str:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            return f"{address} does not answer ({error.code().name}: {error.details()})"
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return "" if name == "SERVING" else f"{address} is {name}"


def _ray() -> str:
    """A raylet of this machine that has joined has a worker process or an agent below it."""
    names = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                names.append((entry / "comm").read_text().strip())
            except OSError:
                continue
    if not names:
        raise UserError.of("--ray", "", "/proc cannot be read here", "PROC_UNREADABLE")
    return "" if "raylet" in names else "no raylet runs on this machine"
