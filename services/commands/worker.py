"""`lockstep-server worker`: a Ray node with worker slots that joins a cluster."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import click

from lockstep.contract.errors import UserError
from services.addresses import Address
from services.cluster import scratch_folder
from services.commands.settings import (
    configure_log,
    data_setting,
    reports_errors,
    run_until_signalled,
    setting,
    slots_setting,
    speak,
)
from services.processes.child import Child
from services.processes.ray_node import ray_environment, start_command
from services.rpc.tokens import read_token_file

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@data_setting
@slots_setting
@setting("--head", env="HEAD", required=True, help="The Ray head, HOST:PORT.")
@setting("--node-ip", env="NODE_IP", default="", show_default="Ray's choice", help="This machine's address in the cluster.")
@click.option(
    "--ray-token-file", envvar="RAY_AUTH_TOKEN_PATH", show_envvar=True, type=_FILE, required=True, help="Ray's token."
)
@reports_errors
def worker(data: Path, slots: int, head: str, node_ip: str, ray_token_file: Path) -> None:
    """Runs a node with worker slots; it ends when the head is gone, and is then to be started again.

    Example: lockstep-server worker --head coordinator:6379 --slots 4 --data /data
    """
    configure_log()
    Address.parse(head, "--head")
    if not (data.resolve() / "files").is_dir():
        raise UserError.of("--data", data, "it must hold files/, the folder that all nodes share: mount it", "FILES_MISSING")
    read_token_file(ray_token_file, "--ray-token-file")
    sys.exit(run_until_signalled(lambda stop: _run(head, slots, node_ip, ray_token_file, stop)))


async def _run(head: str, slots: int, node_ip: str, token_file: Path, stop: asyncio.Event) -> int:
    folder = scratch_folder()
    command = start_command(folder, slots, node_ip, f"--address={head}")
    try:
        node = await Child.start("ray", command, ray_environment(token_file), remove=(folder,))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    stopping, ended = asyncio.create_task(stop.wait()), asyncio.create_task(node.wait())
    await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if stop.is_set():
        await node.stop()
        await ended
        return 0
    speak(f"lockstep-server: the Ray node ended with status {ended.result()}; is the head at {head}, and is the token its own?")
    return 1
