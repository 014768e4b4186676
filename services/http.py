"""The HTTP side: /metrics and /healthz, for machines. Host names are checked, so that no page elsewhere can read it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Final, final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lockstep.contract.errors import UserError
from services import limits
from services.rpc.tokens import Tokens

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def host_allowed(header: str, allowed: Collection[str]) -> bool:
    """Whether a Host header may come here: addresses and names without dots cannot be a stranger's; others are listed."""
    name = header.rpartition("]")[0][1:] if header.startswith("[") else header.partition(":")[0]
    name = name.lower().rstrip(".")
    if name in allowed or (name and "." not in name and ":" not in name):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@final
class HostCheck:
    """Refuses requests whose Host is not allowed."""

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app, self._allowed = app, frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            header = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not host_allowed(header, self._allowed):
                text = "this Host is not allowed here; name it with --allowed-host\n"
                await PlainTextResponse(text, status_code=421)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def application(
    metrics: Callable[[], Awaitable[bytes]],
    healthy: Callable[[], str],
    tokens: Tokens,
    metrics_without_token: bool,
    allowed_hosts: Collection[str],
) -> ASGIApp:
    """The routes. `healthy` gives why the server is not, empty while it is."""

    async def serve_metrics(request: Request) -> Response:
        if not metrics_without_token and not _is_loopback(request):
            try:
                tokens.check(request.headers.get("authorization", ""))
            except UserError as error:
                return PlainTextResponse(f"{error}\n", status_code=401, headers={"www-authenticate": "Bearer"})
        return Response(await metrics(), media_type=METRICS_TYPE, headers={"cache-control": "no-store"})

    async def serve_health(request: Request) -> Response:
        reason = healthy()
        return PlainTextResponse(f"{reason or 'ok'}\n", status_code=503 if reason else 200)

    routes = [Route("/metrics", serve_metrics, methods=["GET"]), Route("/healthz", serve_health, methods=["GET"])]
    return HostCheck(Starlette(routes=routes), allowed_hosts)


def _is_loopback(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


@final
class HttpServer(uvicorn.Server):
    """uvicorn on a socket that is ours; signals are somebody else's affair."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                limit_concurrency=limits.HTTP_CONNECTIONS,
                timeout_keep_alive=limits.HTTP_KEEPALIVE_SECONDS,
                timeout_graceful_shutdown=int(limits.DRAIN_SECONDS),
                ws="none",
            )
        )
        self._listener = listener

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the process's signal handlers alone."""
        yield

    async def run_until_stopped(self) -> None:
        """Serves until `should_exit` is set."""
        await self.serve(sockets=[self._listener])
