"""Cases carried out side by side, each checked by all oracles, and what came of them."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol, TypeVar, final

from tests.faults.case import Case
from tests.faults.fault_job import reference
from tests.faults.oracles import check
from tests.faults.trial import run_trial

AT_ONCE = 2


class Named(Protocol):
    """What every case is: one of a row, with a name."""

    @property
    def row(self) -> int:
        """The row's number."""

    @property
    def name(self) -> str:
        """What is done."""


AnyCase = TypeVar("AnyCase", bound=Named)


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a case of a row: how many of its faults fired, whether so many did as must, the failure or nothing."""

    row: int
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
    """Runs the trial of a case and looks at it."""
    reference(case.epochs)
    with tempfile.TemporaryDirectory(prefix="lockstep-faults-") as folder:
        outcome = run_trial(case, Path(folder))
        fired = len(outcome.fired)
        failure = ""
        try:
            check(outcome)
        except AssertionError as error:
            failure = str(error)
        return Verdict(case.row, fired, fired >= case.expected, outcome.seconds, failure)


def carry_out(
    cases: Iterable[AnyCase],
    judge: Callable[[AnyCase], Verdict],
    on_verdict: Callable[[Verdict], None] = lambda verdict: None,
    apart: bool = False,
    at_once: int = AT_ONCE,
) -> Tally:
    """All cases, so many side by side; `apart`, each in a process where there is no other."""
    tally = Tally()
    pool = ProcessPoolExecutor(at_once, get_context("spawn")) if apart else ThreadPoolExecutor(at_once)
    with pool:
        for verdict in _verdicts(pool, at_once, iter(cases), judge):
            tally.add(verdict)
            on_verdict(verdict)
    return tally


def _verdicts(pool: Executor, at_once: int, cases: Iterator[AnyCase], judge: Callable[[AnyCase], Verdict]) -> Iterator[Verdict]:
    running: set[Future[Verdict]] = set()
    while True:
        for case in islice(cases, at_once - len(running)):
            running.add(pool.submit(_judged, judge, case))
        if not running:
            return
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


def _judged(judge: Callable[[AnyCase], Verdict], case: AnyCase) -> Verdict:
    try:
        return judge(case)
    except Exception:  # a campaign goes on, and says what it met
        return Verdict(case.row, 0, False, 0.0, f"row {case.row}, {case.name}: {traceback.format_exc()}")
