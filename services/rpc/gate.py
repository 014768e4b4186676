"""The one interceptor: who calls, until when, what went wrong, how long it took, and the words every log line carries."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, final

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from lockstep.contract.errors import InternalError, UserError
from services import limits
from services.rpc.errors import as_user_error, status_of
from services.rpc.tokens import Tokens

log = structlog.get_logger()

OPEN: Final = "/grpc.health.v1.Health/"


@final
class _Malformed:
    """Stands for a message that cannot be read."""


Observe = Callable[[str, str, float], None]


@final
class Gate(grpc.aio.ServerInterceptor):
    """Every call passes here. `observe(method, code, seconds)` counts it; health alone needs no token."""

    def __init__(self, tokens: Tokens, observe: Observe) -> None:
        self._tokens, self._observe = tokens, observe

    async def intercept_service(self, continuation: Any, call: grpc.HandlerCallDetails) -> Any:
        """Wraps the method that is called."""
        handler = await continuation(call)
        if handler is None or call.method.startswith(OPEN):
            return handler
        metadata = {str(key): value for key, value in call.invocation_metadata or ()}
        method = call.method.rpartition("/")[2]
        inner = next(
            found
            for found in (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
            if found is not None
        )
        make = _MAKERS[handler.request_streaming, handler.response_streaming]
        wrap = self._stream if handler.response_streaming else self._unary
        streams_in = bool(handler.request_streaming)
        return make(
            wrap(method, metadata, inner, streams_in),
            request_deserializer=_reader(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _unary(self, method: str, metadata: dict[str, Any], inner: Any, streams_in: bool) -> Any:
        async def call(request: Any, context: Any) -> Any:
            started = time.perf_counter()
            code = "OK"
            try:
                self._enter(method, metadata, context)
                work: Awaitable[Any] = inner(_checked(request, streams_in), context)
                if streams_in:
                    return await work
                remaining = context.time_remaining()
                async with asyncio.timeout(min(limits.UNARY_SECONDS, remaining or limits.UNARY_SECONDS)):
                    return await work
            except Exception as error:
                ending = _ending(error)
                code = ending[0].name
                await context.abort(*ending)
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            finally:
                self._observe(method, code, time.perf_counter() - started)

        return call

    def _stream(self, method: str, metadata: dict[str, Any], inner: Any, streams_in: bool) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            started = time.perf_counter()
            code = "OK"
            try:
                self._enter(method, metadata, context)
                answers = inner(_checked(request, streams_in), context)
                if inspect.isawaitable(answers):  # a coroutine that writes by itself
                    await answers
                else:
                    async for answer in answers:
                        yield answer
            except Exception as error:
                ending = _ending(error)
                code = ending[0].name
                await context.abort(*ending)
            except (asyncio.CancelledError, GeneratorExit):
                code = "CANCELLED"
                raise
            finally:
                self._observe(method, code, time.perf_counter() - started)

        return call

    def _enter(self, method: str, metadata: dict[str, Any], context: Any) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(method=method)
        authorization = metadata.get("authorization", "")
        self._tokens.check(authorization if isinstance(authorization, str) else "")
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            raise TimeoutError


_MAKERS: Final = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _reader(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, RecursionError, ValueError):
            return _Malformed()

    return read


def _checked(request: Any, streams_in: bool) -> Any:
    return _checked_stream(request) if streams_in else _readable(request)


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _readable(request)


def _readable(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise UserError.of("", "", "the message cannot be read: it is damaged, or nested too deeply", "MALFORMED_MESSAGE")
    return request


def _ending(error: Exception) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """What `abort` is given for an error; ours are logged."""
    shown = as_user_error(error)
    code, text, status = status_of(shown)
    if isinstance(shown, InternalError):
        log.error("call_failed", exc_info=error)
    elif code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS):
        log.warning("call_refused", code=code.name, error=text)
    return code, text, (("grpc-status-details-bin", status.SerializeToString()),)
