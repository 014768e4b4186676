"""A line for each row of the fault table that was tested: effective over attempted, faults, seconds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

COUNTS = ("attempted", "effective", "faults", "seconds")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Adds up what the tests recorded, in whichever process they ran."""
    rows: dict[int, Counter[str]] = {}
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    for report in reports:
        recorded = dict(report.user_properties)
        if "row" in recorded and report.when == "call":
            rows.setdefault(recorded["row"], Counter()).update({name: recorded[name] for name in COUNTS})
    for row, counts in sorted(rows.items()):
        terminalreporter.write_line(
            f"faults, row {row}: effective / attempted {counts['effective']} / {counts['attempted']}, "
            f"{counts['faults']} faults, {counts['seconds']:.0f} s of runs"
        )


@pytest.fixture(autouse=True)
def no_points() -> Any:
    """Points that a test arms in this process are forgotten behind it."""
    from worker import failpoints

    yield
    failpoints.disarm()
