"""The names of jobs and datasets: the short forms that people write, made whole."""

from __future__ import annotations


def job_name(name: str) -> str:
    """`digits-7f3a` or `jobs/digits-7f3a` as `jobs/digits-7f3a`."""
    return name if "/" in name else f"jobs/{name}"


def dataset_name(name: str) -> str:
    """`digits` or `datasets/digits` as `datasets/digits`."""
    return name if "/" in name else f"datasets/{name}"


def short(name: str) -> str:
    """The last part of a name."""
    return name.rpartition("/")[2]
