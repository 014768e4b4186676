"""The rows of the fault table, at the counts of every run of the tests: whatever befalls a job, all oracles hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.campaign import carry_out
from tests.faults.case import Case
from tests.faults.rows import ROWS, coordinator_cases, drawn, worker_cases
from worker.failpoints import COORDINATOR, WORKER

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def hold(record_property: Callable[[str, object], None]) -> Callable[[list[Case]], None]:
    """Carries cases out, records what they counted, and asserts that nothing failed and that every fault fired."""

    def hold(cases: list[Case]) -> None:
        tally = carry_out(cases)
        record_property("row", cases[0].row)
        for name in ("attempted", "effective", "faults", "seconds"):
            record_property(name, getattr(tally, name))
        assert not tally.failures, "\n\n".join(tally.failures)
        assert tally.effective == tally.attempted, f"only {tally.effective} of {tally.attempted} faults fired"

    return hold


@pytest.mark.parametrize("name", WORKER)
def test_a_worker_killed_anywhere_changes_nothing(name: str, hold: Callable[[list[Case]], None]) -> None:
    hold(worker_cases(name))


@pytest.mark.parametrize("name", COORDINATOR)
def test_a_coordinator_killed_anywhere_is_followed_by_a_run_that_goes_on(
    name: str, hold: Callable[[list[Case]], None]
) -> None:
    hold(coordinator_cases(name))


@pytest.mark.parametrize("row", [5, 14, 16, 17])
def test_what_else_may_befall_a_job(row: int, hold: Callable[[list[Case]], None]) -> None:
    hold(ROWS[row].tested())


def test_the_same_seed_draws_the_same_cases() -> None:
    for number in (1, 2, 5, 14, 17):
        row = ROWS[number]
        assert list(drawn(row, 3, 4)) == list(drawn(row, 3, 4)) != list(drawn(row, 4, 4))
        assert all(case.row == number for case in drawn(row, 3, 20 if number != 5 else 1))
