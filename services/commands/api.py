"""`lockstep-server api`: the API server alone, for a cluster whose agent and workers run elsewhere."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click
import structlog

from lockstep.address import token_path
from lockstep.contract.errors import UserError
from services import limits
from services.addresses import Address
from services.api import ApiServer, Settings
from services.cluster import write_secret
from services.commands.settings import (
    AGENT_PORT,
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
    speak,
)
from services.rpc.tokens import new_token, read_register, read_token_file

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@data_setting
@setting("--listen", env="LISTEN", default=f"127.0.0.1:{GRPC_PORT}", help="Where the API listens, HOST:PORT.")
@setting("--http-listen", env="HTTP_LISTEN", default=f"127.0.0.1:{HTTP_PORT}", help="Where /metrics and /healthz listen.")
@setting("--agent-listen", env="AGENT_LISTEN", default=f"127.0.0.1:{AGENT_PORT}", help="Where the agent's listener is.")
@setting("--token-file", env="API_TOKEN_FILE", type=_FILE, help="Tokens of the users, one a line. On loopback one is made.")
@setting("--agent-token-file", env="AGENT_TOKEN_FILE", type=_FILE, help="The agent's token. On loopback one is made.")
@setting("--allowed-host", "allowed_hosts", env="ALLOWED_HOSTS", multiple=True, help="A Host that HTTP requests may name.")
@setting(
    "--metrics-without-token",
    env="METRICS_WITHOUT_TOKEN",
    is_flag=True,
    help="Serve /metrics to other machines without a token.",
)
@setting("--upload-bytes", env="UPLOAD_BYTES", type=click.IntRange(1), default=limits.UPLOAD_BYTES, help="Largest upload.")
@reports_errors
def api(
    data: Path,
    listen: str,
    http_listen: str,
    agent_listen: str,
    token_file: Path | None,
    agent_token_file: Path | None,
    allowed_hosts: tuple[str, ...],
    metrics_without_token: bool,
    upload_bytes: int,
) -> None:
    """Runs the API server.

    Example: lockstep-server api --data /data --listen 0.0.0.0:7460 --token-file /run/secrets/token --agent-token-file ...
    """
    configure_log()
    make_data_folder(data)
    address = Address.parse(listen, "--listen")
    http_address = Address.parse(http_listen, "--http-listen")
    agent_address = Address.parse(agent_listen, "--agent-listen")
    registered = bool(read_register(data / "store" / "tokens.json"))
    made = "" if token_file else kept_token(data)
    tokens = read_token_file(token_file, "--token-file") if token_file else [made]
    if not token_file and not registered:
        _need_loopback("--token-file", address, http_address)
    agent_token = data / "store" / "agent_token"
    agent_tokens = read_token_file(agent_token_file, "--agent-token-file") if agent_token_file else [new_token()]
    if not agent_token_file:
        _need_loopback("--agent-token-file", agent_address)
    settings = Settings(
        data=data.resolve(),
        listen=address,
        http_listen=http_address,
        agent_listen=agent_address,
        tokens=tokens,
        agent_tokens=agent_tokens,
        allowed_hosts=allowed_hosts,
        metrics_without_token=metrics_without_token,
        upload_bytes=upload_bytes,
    )
    secrets = {agent_token: agent_tokens[0]} if not agent_token_file else {}
    sys.exit(run_until_signalled(lambda stop: _run(settings, secrets, made, stop)))


def _need_loopback(flag: str, *addresses: Address) -> None:
    for address in addresses:
        if not address.is_loopback:
            remedy = f"listening at {address}, beyond this machine, needs tokens: name a file of them"
            raise UserError.of(flag, "", remedy, "TOKENS_REQUIRED")


async def _run(settings: Settings, secrets: dict[Path, str], client_token: str, stop: asyncio.Event) -> int:
    server = ApiServer(settings)
    written: list[Path] = []
    try:
        await server.start()
        if client_token and settings.listen.is_loopback:
            secrets = {**secrets, token_path("127.0.0.1", server.ports["grpc"]): client_token}
        for path, token in secrets.items():
            write_secret(path, token)
            written.append(path)
        structlog.get_logger().info("listening", **server.ports)
        click.echo(f"ready {Address(settings.listen.host, server.ports['grpc'])}")
        await first_of(stop, server.stopped)
        if server.failure:
            speak(f"lockstep-server: {server.failure}")
        return FAILED if server.failure else 0
    finally:
        await server.stop()
        for path in written:
            path.unlink(missing_ok=True)
