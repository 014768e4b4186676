"""Whatever comes is answered or refused with a place; nothing that a caller sends is our own fault."""

from __future__ import annotations

import math
from typing import cast

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.contract.errors import UserError
from lockstep.v1.dataset_service_pb2 import UploadHeader
from lockstep.v1.job_spec_pb2 import JobSpec
from services import pages
from services.jobs import filters
from services.jobs.names import job_id
from services.jobs.submission import Version, prepare
from services.rpc.errors import status_of
from tests.services.messages import messages
from tests.services.specs import DIGEST, DIGITS, spec

VERSION = Version("digits", DIGEST, DIGITS)
MORE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def refused_or_good(job: JobSpec, version: Version | None) -> None:
    """A job is prepared with finite sizes, or refused by words that fit into an answer."""
    try:
        made = prepare(job, version)
    except UserError as error:
        code, text, status = status_of(error)
        assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
        assert text and status.ByteSize() < 7000
        assert all(violation.remedy for violation in error.violations)
    else:
        assert made.plan.total_steps > 0 and made.plan.worker_memory_bytes < 2**63
        assert math.isfinite(made.spec.validation_fraction)


@MORE
@given(messages(JobSpec.DESCRIPTOR), st.sampled_from([VERSION, None]))
def test_any_job(message: JobSpec, version: Version | None) -> None:
    refused_or_good(message, version)


@MORE
@given(messages(JobSpec.DESCRIPTOR), st.sets(st.sampled_from([field.name for field in JobSpec.DESCRIPTOR.fields]), max_size=3))
def test_a_good_job_with_some_fields_of_another(message: JobSpec, names: set[str]) -> None:
    job = spec()
    for name in names:
        job.ClearField(cast("object", name))  # type: ignore[arg-type]
        part = JobSpec()
        part.CopyFrom(message)
        for other in JobSpec.DESCRIPTOR.fields:
            if other.name != name:
                part.ClearField(cast("object", other.name))  # type: ignore[arg-type]
        job.MergeFrom(part)
    refused_or_good(job, VERSION)


@MORE
@given(st.text(max_size=40))
def test_any_filter_token_name_and_order(text: str) -> None:
    for read in (filters.condition, filters.order, job_id, lambda given: pages.decode(given, (int, str), "f")):
        try:
            read(text)
        except UserError as error:
            assert status_of(error)[0] is grpc.StatusCode.INVALID_ARGUMENT


@MORE
@given(messages(UploadHeader.DESCRIPTOR))
def test_any_header_of_an_upload(message: UploadHeader) -> None:
    from lockstep.contract.rules import check

    wrong = check(message)
    assert all(violation.place or violation.remedy for violation in wrong)
    if wrong:
        assert status_of(UserError(wrong))[2].ByteSize() < 7000


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_an_answer_with_many_violations_fits_into_metadata(count: int) -> None:
    from lockstep.contract.errors import Violation

    wrong = [Violation(f"model.layers[{n}].dense.units", "ä" * 500, "it must be at least 1" + "ü" * 500) for n in range(count)]
    code, text, status = status_of(UserError(wrong))
    # The text goes percent-encoded, the details as base64.
    assert 3 * len(text.encode()) + status.ByteSize() * 4 / 3 < 16_000 and code is grpc.StatusCode.INVALID_ARGUMENT
