"""The gRPC channel: retries, deadlines, keepalive, the token, and errors of the server as exceptions of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, final

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from lockstep import __version__
from lockstep.address import Address
from lockstep.contract.errors import InternalError, UserError, Violation
from lockstep.failures import ServerUnavailable

DEADLINE_S = 30.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024
MAX_METADATA_BYTES = 64 * 1024
KEEPALIVE_MS = 30_000
KEEPALIVE_ANSWER_MS = 10_000

# Only UNAVAILABLE is tried again, and only for calls that may come twice: reads, and writes that carry a request_id or
# change nothing the second time.
REPEATABLE = {
    "lockstep.v1.TrainingJobService": (
        "CreateTrainingJob",
        "GetTrainingJob",
        "ListTrainingJobs",
        "CancelTrainingJob",
        "PauseTrainingJob",
        "ResumeTrainingJob",
        "ScaleTrainingJob",
        "PlanTrainingJob",
        "WatchTrainingJob",
    ),
    "lockstep.v1.DatasetService": ("GetDataset", "ListDatasets"),
    "lockstep.v1.ClusterService": ("GetCluster",),
}
RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}

AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
OURS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})

# What gRPC itself says where HTTP answers, whatever status it makes of it.
NOT_GRPC = "Received http2 header with status"

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@final
class Connection:
    """A channel to one server, with the token that goes with each call."""

    def __init__(self, address: Address, token: str | None, deadline_s: float = DEADLINE_S) -> None:
        self.address = address
        self.deadline_s = deadline_s
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._has_token = token is not None
        self.channel = grpc.insecure_channel(str(address), options=_options(address))

    def close(self) -> None:
        """Ends the channel and all calls on it."""
        self.channel.close()

    def call(self, method: Callable[..., Answer], request: Any, deadline_s: float | None = None) -> Answer:
        """One call with a deadline. Raises UserError, ServerUnavailable or InternalError."""
        try:
            return method(request, timeout=deadline_s or self.deadline_s, metadata=self.metadata)
        except grpc.RpcError as error:
            self.fail(error)

    def fail(self, error: grpc.RpcError) -> NoReturn:
        """Raises what an error of gRPC means."""
        raise self.meaning(error) from error

    def meaning(self, error: grpc.RpcError) -> UserError | ServerUnavailable | InternalError:
        """The exception for an error of gRPC."""
        code, details = error.code(), error.details() or ""
        if code in AWAY:
            said = rpc_status.from_call(error) is not None  # the server's own words, not the channel's
            return ServerUnavailable(str(self.address), details if said else _away(code, details, self.deadline_s))
        if details.startswith(NOT_GRPC):
            return ServerUnavailable(str(self.address), f"what answers there is no Lockstep server, or a proxy ({details})")
        if code in OURS:
            return InternalError(f"{self.address} failed: {details or code.name}")
        if code is grpc.StatusCode.UNAUTHENTICATED and not self._has_token:
            remedy = f"the server at {self.address} wants one: name its file with --token-file or LOCKSTEP_TOKEN_FILE"
            return UserError.of("token", "none", remedy, "TOKEN_MISSING")
        return UserError(*_violations(error, code.name, details))


def is_away(error: grpc.RpcError) -> bool:
    """Whether the same call may succeed later."""
    return error.code() in AWAY


def _options(address: Address) -> list[tuple[str, Any]]:
    names = [{"service": service, "method": method} for service, methods in REPEATABLE.items() for method in methods]
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps({"methodConfig": [{"name": names, "retryPolicy": RETRIES}]})),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_ANSWER_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.primary_user_agent", f"lockstep/{__version__}"),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    # A proxy of the environment cannot reach this machine's loopback.
    return [*options, ("grpc.enable_http_proxy", 0)] if address.is_loopback else options


def _away(code: grpc.StatusCode, details: str, deadline_s: float) -> str:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"the server did not answer within {deadline_s:g} s; is it overloaded? try again"
    if "refused" in details.lower():
        return (
            "nobody listens there; start it with `lockstep-server up`, or name another server with --server or LOCKSTEP_SERVER"
        )
    return f"the server cannot be reached ({details or code.name}); check the address and try again"


def _violations(error: grpc.RpcError, code: str, details: str) -> tuple[list[Violation], str]:
    """The violations that an error of the server carries, at least one, and its reason."""
    reason, found = code, []
    first = Violation("", "", details or code)
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
            if remedy := info.metadata.get("remedy"):
                first = Violation(info.metadata.get("place", ""), info.metadata.get("value", ""), remedy, reason)
        elif detail.Unpack(bad):
            found += [_violation(field) for field in bad.field_violations]
    return found or [first], reason


def _violation(field: error_details_pb2.BadRequest.FieldViolation) -> Violation:
    description = field.description.removeprefix(f"{field.field}: ")
    got = re.fullmatch(r"got (.*?); (.*)", description, re.DOTALL)
    value, remedy = (got[1], got[2]) if got else ("", description)
    return Violation(field.field, value, remedy, field.reason or "INVALID_FIELD")
