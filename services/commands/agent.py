"""`lockstep-server agent`: the Ray head without slots of its own, and the agent beside it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from lockstep.contract.errors import UserError
from services.cluster import Cluster, ClusterSettings
from services.commands.settings import (
    AGENT_PORT,
    FAILED,
    RAY_PORT,
    configure_log,
    data_setting,
    first_of,
    reports_errors,
    run_until_signalled,
    setting,
    speak,
)
from services.rpc.tokens import read_token_file

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@data_setting
@setting("--server", env="AGENT_SERVER", default=f"127.0.0.1:{AGENT_PORT}", help="The API server's listener for the agent.")
@setting("--agent-token-file", env="AGENT_TOKEN_FILE", type=_FILE, required=True, help="The agent's token.")
@click.option(
    "--ray-token-file", envvar="RAY_AUTH_TOKEN_PATH", show_envvar=True, type=_FILE, help="Ray's token; made up without one."
)
@setting("--ray-port", env="RAY_PORT", type=click.IntRange(0, 65535), default=RAY_PORT, help="Port of the Ray head; 0: any.")
@setting("--node-ip", env="NODE_IP", default="", show_default="Ray's choice", help="This machine's address in the cluster.")
@setting("--head-slots", env="HEAD_SLOTS", type=click.IntRange(0, 1024), default=0, help="Worker slots beside the head.")
@setting("--take-over", env="TAKE_OVER", is_flag=True, help="Fence the agent that is connected now.")
@reports_errors
def agent(
    data: Path,
    server: str,
    agent_token_file: Path,
    ray_token_file: Path | None,
    ray_port: int,
    node_ip: str,
    head_slots: int,
    take_over: bool,
) -> None:
    """Runs the Ray head and the agent; workers join with `lockstep-server worker`.

    Example: lockstep-server agent --server api:7462 --agent-token-file /run/secrets/agent_token --data /data
    """
    configure_log()
    files = data.resolve() / "files"
    if not files.is_dir():
        raise UserError.of("--data", data, "it must hold files/, the folder that all nodes share: mount it", "FILES_MISSING")
    read_token_file(agent_token_file, "--agent-token-file")
    if ray_token_file is not None:
        read_token_file(ray_token_file, "--ray-token-file")
    settings = ClusterSettings(
        files=files,
        server=server,
        agent_token_file=agent_token_file,
        cpus=head_slots,
        slots=max(1, head_slots),
        ray_port=ray_port,
        node_ip=node_ip or own_address(),
        ray_token_file=ray_token_file,
        take_over=take_over,
    )
    sys.exit(run_until_signalled(lambda stop: _run(settings, stop)))


def own_address() -> str:
    """This machine's address towards others, as Ray would choose it; nothing is sent."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            pass
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


async def _run(settings: ClusterSettings, stop: asyncio.Event) -> int:
    cluster = Cluster(settings)
    try:
        starting = asyncio.create_task(cluster.start())
        starting.add_done_callback(lambda task: stop.set() if not task.cancelled() and task.exception() else None)
        await first_of(stop, cluster.stopped)
        if not starting.done():
            starting.cancel()
        elif starting.exception() is not None:
            await starting
        if cluster.failure:
            speak(f"lockstep-server: {cluster.failure}")
        return FAILED if cluster.failure else 0
    finally:
        await cluster.stop()
