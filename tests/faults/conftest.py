"""A line for each row of the fault table that was tested: effective over attempted, faults, seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tests.faults.campaign import Tally, Verdict
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


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[[Iterable[Verdict]], None]:
    """Records verdicts for the lines at the end."""

    def record(verdicts: Iterable[Verdict]) -> None:
        rows: dict[int, Tally] = {}
        for verdict in verdicts:
            rows.setdefault(verdict.row, Tally()).add(verdict)
        counted = {row: [own.attempted, own.effective, own.faults, own.seconds] for row, own in rows.items()}
        record_property("fault_rows", counted)

    return record


@pytest.fixture(autouse=True)
def no_points() -> Iterator[None]:
    """Points that a test arms in this process are forgotten behind it."""
    yield
    failpoints.disarm()
