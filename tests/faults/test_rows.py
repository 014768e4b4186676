"""The rows of the fault table, at the counts of every run of the tests: whatever befalls a job, all oracles hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from tests.faults import cut_off
from tests.faults.campaign import Verdict, carry_out, judge
from tests.faults.case import Case
from tests.faults.rows import ROWS, coordinator_cases, drawn, worker_cases
from tests.faults.soak import ALL
from worker.failpoints import COORDINATOR, WORKER

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.fixture
def hold(record: Callable[[Iterable[Verdict]], None]) -> Callable[[list[Case]], None]:
    """Carries cases out, records what they counted, and asserts that nothing failed and that every fault fired."""

    def hold(cases: list[Case]) -> None:
        verdicts: list[Verdict] = []
        tally = carry_out(cases, judge, verdicts.append)
        record(verdicts)
        assert not tally.failures, "\n\n".join(tally.failures)
        assert tally.effective == tally.attempted, f"only {tally.effective} of {tally.attempted} faults fired"

    return hold


@pytest.mark.parametrize("name", WORKER)
def test_a_worker_killed_anywhere_changes_nothing(name: str, hold: Callable[[list[Case]], None]) -> None:
    hold(worker_cases(name))


@pytest.mark.parametrize("name", COORDINATOR)
def test_a_coordinator_killed_anywhere_is_followed_by_a_run_that_goes_on(name: str, hold: Callable[[list[Case]], None]) -> None:
    hold(coordinator_cases(name))


def test_what_else_may_befall_a_job(hold: Callable[[list[Case]], None]) -> None:
    hold([case for row in (5, 6, 14, 16, 17) for case in ROWS[row].fixed()])  # the first one takes as long as the others


def test_an_agent_that_is_cut_off_from_the_api_server_changes_nothing(record: Callable[[Iterable[Verdict]], None]) -> None:
    record(map(cut_off.judge, cut_off.CUT_OFF.fixed()))


def test_the_same_seed_draws_the_same_cases() -> None:
    for row in ALL:
        if row.number != 16:  # three cases in all
            assert list(drawn(row, 3, 4)) == list(drawn(row, 3, 4)) != list(drawn(row, 4, 4))
            assert all(case.row == row.number for case in drawn(row, 3, 20))
