"""Row 6, simulated: seeds, each of which draws a job and one to four faults, mostly near each other."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import final

from tests.faults.campaign import Verdict
from tests.faults.rows import Row
from tests.faults.simulation.simulation import Bench

FIXED = 2000


@final
@dataclass(frozen=True, slots=True)
class Seed:
    """A simulation; `python -m tests.faults.simulation --seed S` repeats it."""

    seed: int
    row: int = 6

    @property
    def name(self) -> str:
        """As the command line has it."""
        return f"simulation --seed {self.seed}"


def judge(case: Seed) -> Verdict:
    """Runs the simulation; it counts where at least one of its faults struck."""
    began = time.monotonic()
    with Bench() as bench:
        found = bench.seed(case.seed)
    struck = found.faults.struck.total()
    failure = f"row {case.row}, {case.name}: {'; '.join(found.wrong[:3])}" if found.wrong else ""
    return Verdict(case.row, struck, struck > 0, time.monotonic() - began, failure)


SEEDS = Row(
    6,
    "two or three faults in one job, simulated",
    lambda: [Seed(seed) for seed in range(FIXED)],
    lambda random, _: Seed(random.randrange(1 << 31)),
    100_000,
    judge,
    apart=True,
)
