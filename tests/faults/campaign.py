"""Cases carried out two at a time, each checked by all oracles, and what came of them."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import final

from tests.faults.case import Case
from tests.faults.fault_job import reference
from tests.faults.oracles import check
from tests.faults.trial import run_trial

AT_ONCE = 2


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a case: how many of its points fired, whether so many did as must, the failure or nothing."""

    case: Case
    fired: int
    effective: bool
    seconds: float
    failure: str = ""


@final
@dataclass(slots=True)
class Tally:
    """The verdicts of a row, counted."""

    attempted: int = 0
    effective: int = 0
    faults: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        """Counts one more."""
        self.attempted += 1
        self.effective += verdict.effective
        self.faults += verdict.fired
        self.seconds += verdict.seconds
        if verdict.failure:
            self.failures.append(verdict.failure)


def judge(case: Case) -> Verdict:
    """Runs a case and looks at it."""
    try:
        with tempfile.TemporaryDirectory(prefix="lockstep-faults-") as folder:
            outcome = run_trial(case, Path(folder))
            fired = len(outcome.fired)
            failure = ""
            try:
                check(outcome)
            except AssertionError as error:
                failure = str(error)
            return Verdict(case, fired, fired >= case.expected, outcome.seconds, failure)
    except Exception:  # a campaign goes on, and says what it met
        return Verdict(case, 0, False, 0.0, f"row {case.row}, {case.name}: {traceback.format_exc()}")


def carry_out(cases: Iterable[Case], on_verdict: Callable[[Verdict], None] = lambda verdict: None) -> Tally:
    """All cases, two at a time."""
    tally = Tally()
    for verdict in _verdicts(iter(cases)):
        tally.add(verdict)
        on_verdict(verdict)
    return tally


def _verdicts(cases: Iterator[Case]) -> Iterator[Verdict]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running: set[Future[Verdict]] = set()
        while True:
            for case in islice(cases, AT_ONCE - len(running)):
                reference(case.epochs)  # once, before both would wait for it
                running.add(pool.submit(judge, case))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
