"""Names of jobs and datasets: `jobs/digits-mlp-7f3a`, `datasets/digits@3f2a...`."""

from __future__ import annotations

import re
import secrets
from typing import Final

from lockstep.contract.errors import UserError

ID: Final = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_JOB: Final = re.compile(rf"jobs/({ID})")
_DATASET: Final = re.compile(rf"datasets/({ID})(?:@([0-9a-f]{{8,64}}))?")


def job_id(name: str) -> str:
    """The last part of "jobs/ID". Raises UserError."""
    if match := _JOB.fullmatch(name):
        return match[1]
    raise UserError.of("name", name, 'it must be a job\'s name, like "jobs/digits-mlp-7f3a"', "INVALID_NAME")


def dataset_id(name: str, place: str = "name") -> str:
    """The last part of "datasets/ID"; a version is not allowed. Raises UserError."""
    identity, version = dataset_version(name, place)
    if version:
        raise UserError.of(place, name, "it must name a dataset without a version", "INVALID_NAME")
    return identity


def dataset_version(name: str, place: str = "dataset") -> tuple[str, str]:
    """Id and digest prefix (empty: the newest) of "datasets/ID@DIGEST". Raises UserError."""
    if match := _DATASET.fullmatch(name):
        return match[1], match[2] or ""
    raise UserError.of(place, name, 'it must be a dataset\'s name, like "datasets/digits"', "INVALID_NAME")


def new_job_id(word: str) -> str:
    """The spec's name and four letters: "digits-mlp-7f3a"."""
    return f"{word or 'job'}-{secrets.token_hex(2)}"
