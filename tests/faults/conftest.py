"""A line for each row of the fault table that was tested: effective over attempted, faults, seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from worker import failpoints


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Adds up what the tests recorded, in whichever process they ran."""
    rows: dict[int, list[float]] = {}
    for report in [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]:
        for row, counts in dict(report.user_properties).get("fault_rows", {}).items() if report.when == "call" else ():
            rows[int(row)] = [a + b for a, b in zip(rows.get(int(row), [0, 0, 0, 0.0]), counts, strict=True)]
    for row, (attempted, effective, faults, seconds) in sorted(rows.items()):
        terminalreporter.write_line(
            f"faults, row {row}: effective / attempted {effective} / {attempted}, {faults} faults, {seconds:.0f} s of trials"
        )


@pytest.fixture(autouse=True)
def no_points() -> Iterator[None]:
    """Points that a test arms in this process are forgotten behind it."""
    yield
    failpoints.disarm()
