"""The one table from errors to status codes, with their details (google.rpc). Nothing else knows gRPC's codes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2

from lockstep.contract.errors import InternalError, UserError, Violation, count_of, more

DOMAIN: Final = "lockstep"
# A client refuses more than 8 KiB of metadata, and what is said stands in it three times.
TEXT_BYTES: Final = 1600
PART_CHARACTERS: Final = 600

Code = grpc.StatusCode

# Reasons that are not here are INVALID_ARGUMENT.
CODES: Final[dict[str, grpc.StatusCode]] = {
    "TOKEN_MISSING": Code.UNAUTHENTICATED,
    "TOKEN_WRONG": Code.UNAUTHENTICATED,
    "JOB_NOT_FOUND": Code.NOT_FOUND,
    "DATASET_NOT_FOUND": Code.NOT_FOUND,
    "CHECKPOINT_NOT_FOUND": Code.NOT_FOUND,
    "JOB_EXISTS": Code.ALREADY_EXISTS,
    "JOB_BEING_REMOVED": Code.FAILED_PRECONDITION,
    "WRONG_STATE": Code.FAILED_PRECONDITION,
    "ETAG_DIFFERS": Code.ABORTED,
    "ARITHMETIC_CHANGED": Code.FAILED_PRECONDITION,
    "JOB_NOT_ENDED": Code.FAILED_PRECONDITION,
    "JOB_IN_USE": Code.FAILED_PRECONDITION,
    "NOT_A_TRAINING": Code.FAILED_PRECONDITION,
    "OTHER_ARITHMETIC": Code.FAILED_PRECONDITION,
    "DATASET_IN_USE": Code.FAILED_PRECONDITION,
    "UPLOAD_UNDER_WAY": Code.FAILED_PRECONDITION,
    "NO_CHECKPOINT": Code.FAILED_PRECONDITION,
    "EVENTS_MISSING": Code.FAILED_PRECONDITION,
    "TOO_MANY_LIVE_JOBS": Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_JOBS": Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_DATASETS": Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_VERSIONS": Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_WATCHERS": Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_UPLOADS": Code.RESOURCE_EXHAUSTED,
    "TOO_MANY_DOWNLOADS": Code.RESOURCE_EXHAUSTED,
    "DISK_FULL": Code.RESOURCE_EXHAUSTED,
    "STORE_BUSY": Code.UNAVAILABLE,
    "STORE_UNAVAILABLE": Code.UNAVAILABLE,
    "STOPPING": Code.UNAVAILABLE,
    "CHECKPOINT_DAMAGED": Code.DATA_LOSS,
    "MANIFEST_DAMAGED": Code.DATA_LOSS,
    "MANIFEST_FORMAT": Code.DATA_LOSS,
    "DEADLINE_PASSED": Code.DEADLINE_EXCEEDED,
    "UPLOAD_TOO_SLOW": Code.DEADLINE_EXCEEDED,
    "INGEST_TOO_SLOW": Code.DEADLINE_EXCEEDED,
    "NOT_BUILT": Code.UNIMPLEMENTED,
    "INTERNAL": Code.INTERNAL,
}

# What may be tried again, and after how many seconds.
RETRY_SECONDS: Final = {
    "TOO_MANY_LIVE_JOBS": 30,
    "TOO_MANY_WATCHERS": 10,
    "TOO_MANY_UPLOADS": 10,
    "TOO_MANY_DOWNLOADS": 10,
    "DISK_FULL": 60,
    "STORE_BUSY": 1,
    "STORE_UNAVAILABLE": 10,
    "STOPPING": 2,
}


def as_user_error(error: BaseException) -> UserError | InternalError:
    """Every exception as one of the two that people see."""
    if isinstance(error, UserError | InternalError):
        return error
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return UserError.of(
            "", "", "the deadline passed before the work was done; try again with a longer one", "DEADLINE_PASSED"
        )
    return InternalError(f"{type(error).__name__} in the API server")


def code_of(error: UserError | InternalError) -> grpc.StatusCode:
    """The status code of an error."""
    return Code.INTERNAL if isinstance(error, InternalError) else CODES.get(error.reason, Code.INVALID_ARGUMENT)


def status_of(error: UserError | InternalError) -> tuple[grpc.StatusCode, str, status_pb2.Status]:
    """Code, sentence and details: one ErrorInfo always, and what the code calls for."""
    code = code_of(error)
    if isinstance(error, InternalError):
        status = status_pb2.Status(code=code.value[0], message=str(error)[:TEXT_BYTES])
        status.details.add().Pack(details.ErrorInfo(domain=DOMAIN, reason="INTERNAL"))
        return code, status.message, status
    shown = _fitting(error.violations)
    text = "\n".join(str(violation) for violation in shown)
    status = status_pb2.Status(code=code.value[0], message=text)
    info = details.ErrorInfo(domain=DOMAIN, reason=error.reason)
    for violation in shown[:1]:
        info.metadata["place"], info.metadata["value"] = violation.place, violation.value
        info.metadata["remedy"] = violation.remedy
    status.details.add().Pack(info)
    if code in _DETAILS:
        status.details.add().Pack(_DETAILS[code](shown))
    if error.reason in RETRY_SECONDS:
        status.details.add().Pack(details.RetryInfo(retry_delay=Duration(seconds=RETRY_SECONDS[error.reason])))
    return code, text, status


def _fitting(violations: Sequence[Violation]) -> list[Violation]:
    """As many violations as the trailing metadata can carry; the last says how many there are besides."""
    shown: list[Violation] = []
    left = TEXT_BYTES
    for index, violation in enumerate(violations):
        cut = Violation(
            violation.place[:PART_CHARACTERS],
            violation.value[:PART_CHARACTERS],
            violation.remedy[:PART_CHARACTERS],
            violation.reason,
        )
        left -= len(str(cut).encode()) + 1
        if left < 0 and shown:
            shown.append(more(count_of(violations) - index))
            break
        shown.append(cut)
    return shown


def _bad_request(violations: Sequence[Violation]) -> details.BadRequest:
    bad = details.BadRequest()
    for item in violations:
        description = f"got {item.value}; {item.remedy}" if item.value else item.remedy
        bad.field_violations.add(field=item.place, description=description, reason=item.reason)
    return bad


def _precondition(violations: Sequence[Violation]) -> details.PreconditionFailure:
    failure = details.PreconditionFailure()
    for item in violations:
        failure.violations.add(type=item.reason, subject=item.value or item.place, description=item.remedy)
    return failure


def _quota(violations: Sequence[Violation]) -> details.QuotaFailure:
    quota = details.QuotaFailure()
    for item in violations:
        quota.violations.add(subject=item.place or "server", description=item.remedy)
    return quota


_DETAILS: Final[dict[grpc.StatusCode, Callable[[Sequence[Violation]], Message]]] = {
    Code.INVALID_ARGUMENT: _bad_request,
    Code.FAILED_PRECONDITION: _precondition,
    Code.RESOURCE_EXHAUSTED: _quota,
}
