"""`lockstep-server up`: the whole service on this machine; one command, one data folder, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path

import click

from lockstep.address import token_path
from lockstep.contract.errors import UserError
from services import limits
from services.addresses import Address
from services.api import ApiServer, Settings
from services.cluster import Cluster, ClusterSettings, write_secret
from services.commands.settings import (
    FAILED,
    GRPC_PORT,
    HTTP_PORT,
    configure_log,
    data_setting,
    first_of,
    kept_token,
    make_data_folder,
    reports_errors,
    run_until_signalled,
    setting,
    slots_setting,
    speak,
)
from services.rpc.tokens import new_token

_PORT = click.IntRange(0, 65535)
HOST = "127.0.0.1"


@click.command()
@data_setting
@slots_setting
@setting("--port", env="PORT", type=_PORT, default=GRPC_PORT, help="Port of the API on loopback; 0: any that is free.")
@setting(
    "--http-port", env="HTTP_PORT", type=_PORT, default=HTTP_PORT, help="Port of /metrics on loopback; 0: any that is free."
)
@setting("--agent-port", env="AGENT_PORT", type=_PORT, default=0, help="Port of the agent's listener; 0: any that is free.")
@setting("--upload-bytes", env="UPLOAD_BYTES", type=click.IntRange(1), default=limits.UPLOAD_BYTES, help="Largest upload.")
@reports_errors
def up(data: Path, slots: int, port: int, http_port: int, agent_port: int, upload_bytes: int) -> None:
    """Runs API server, agent and a local Ray; Ctrl-C stops all of it.

    Example: lockstep-server up --data ./data --slots 4
    """
    configure_log()
    os.umask(0o077)  # whatever the data folder's own mode, what comes into it is its owner's
    make_data_folder(data)
    tokens = [kept_token(data)], [new_token()]
    settings = Settings(
        data=data.resolve(),
        listen=Address(HOST, port),
        http_listen=Address(HOST, http_port),
        agent_listen=Address(HOST, agent_port),
        tokens=tokens[0],
        agent_tokens=tokens[1],
        upload_bytes=upload_bytes,
    )
    sys.exit(run_until_signalled(lambda stop: _run(settings, slots, stop)))


async def _run(settings: Settings, slots: int, stop: asyncio.Event) -> int:
    started = time.monotonic()
    api = ApiServer(settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(api.stop)
        await api.start()
        client_token = token_path(HOST, api.ports["grpc"])
        agent_token = settings.data / "store" / "agent_token"
        stack.callback(client_token.unlink, missing_ok=True)
        stack.callback(agent_token.unlink, missing_ok=True)
        write_secret(client_token, settings.tokens[0])
        write_secret(agent_token, settings.agent_tokens[0])
        cluster = Cluster(
            ClusterSettings(
                files=settings.data / "files",
                server=f"{HOST}:{api.ports['agent']}",
                agent_token_file=agent_token,
                cpus=slots,
                slots=slots,
                node_ip=HOST,
                logs=settings.data / "logs",
                take_over=True,
                remove=(client_token, agent_token),
            )
        )
        stack.push_async_callback(cluster.stop)
        starting = asyncio.create_task(_until_ready(api, cluster))
        starting.add_done_callback(lambda task: stop.set() if not task.cancelled() and task.exception() else None)
        stack.callback(starting.cancel)
        announce = asyncio.create_task(_announce(starting, api, cluster, settings, client_token, started))
        stack.callback(announce.cancel)
        await first_of(stop, api.stopped, cluster.stopped)
        if starting.done() and not starting.cancelled() and (error := starting.exception()) is not None:
            raise error
        failure = api.failure or cluster.failure
        speak(f"lockstep-server: {failure}" if failure else "stopping API server, agent and Ray")
        return FAILED if failure else 0


async def _until_ready(api: ApiServer, cluster: Cluster) -> None:
    """Until jobs can start. Raises UserError when that does not come about."""
    await cluster.start()
    deadline = time.monotonic() + limits.READY_SECONDS
    while not (api.agent_desk.connected and api.dispatcher.slots):
        if time.monotonic() > deadline:
            problems = "; ".join(api.dispatcher.problems) or f"look into {api.settings.data / 'logs'}"
            remedy = f"no worker slots within {limits.READY_SECONDS:.0f} s: {problems}"
            raise UserError.of("agent", "", remedy, "CLUSTER_NOT_READY")
        await asyncio.sleep(0.02)


async def _announce(
    starting: asyncio.Task[None], api: ApiServer, cluster: Cluster, settings: Settings, token: Path, started: float
) -> None:
    await asyncio.wait([starting])
    if starting.cancelled() or starting.exception() is not None:
        return
    address, http = f"{HOST}:{api.ports['grpc']}", f"http://{HOST}:{api.ports['http']}"
    server = "" if api.ports["grpc"] == GRPC_PORT else f"--server {address} "
    click.echo(f"ready {address}")
    slots = api.dispatcher.slots
    speak(
        f"Lockstep is ready after {time.monotonic() - started:.1f} s, with {slots} worker slot{'' if slots == 1 else 's'}.\n"
        f"  API      {address}, token in {token}\n"
        f"  metrics  {http}/metrics\n"
        f"  agent    {HOST}:{api.ports['agent']}; Ray {cluster.ray_address}, with a random token\n"
        f"  data     {settings.data}\n"
        "Try next:\n"
        f"  lockstep {server}dataset push digits examples/digits.npz\n"
        f"  lockstep {server}submit --watch examples/digits.yaml\n"
        f"  lockstep {server}jobs\n"
        "Ctrl-C stops all of it."
    )
    for problem in api.dispatcher.problems:
        speak(f"  note: {problem}")
