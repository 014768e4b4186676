"""The soak: rows of the table of faults with cases drawn from a seed. Progress on stderr, the table on stdout.

scripts/soak                          all rows, as many cases as the table wants
scripts/soak --row 1 --seed 7 --n 50
scripts/soak --fixed                  all fixed cases, of which every run of the tests takes a part
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from tests.faults.campaign import Named, Tally, Verdict, carry_out
from tests.faults.cut_off import CUT_OFF
from tests.faults.heads import HEADS
from tests.faults.links import LINKS
from tests.faults.rows import ROWS, Row, drawn
from tests.faults.seeds import SEEDS

ROOT = Path(__file__).parent.parent.parent
# Row 6 is there twice, simulated and on processes; row 12 as well, between workers and for the agent.
ALL: list[Row[Any]] = sorted([*ROWS.values(), HEADS, SEEDS, *LINKS, CUT_OFF], key=lambda row: row.number)
LINE_S = 5.0


@final
@dataclass(frozen=True, slots=True)
class Soaked:
    """A row, what came of it, and how long it took."""

    row: Row[Any]
    tally: Tally
    seconds: float


def soak(row: Row[Any], cases: Iterable[Named], count: int) -> Soaked:
    """So many cases of a row, with a line for each failure and now and then one for the rest."""
    began, done = time.monotonic(), 0
    said = began

    def on_verdict(verdict: Verdict) -> None:
        nonlocal done, said
        done += 1
        if verdict.failure:
            print(f"soak: {verdict.failure}", file=sys.stderr, flush=True)
        now = time.monotonic()
        if now - said > LINE_S:
            said = now
            print(f"soak: row {row.number}: {done} of {count} in {now - began:.0f} s", file=sys.stderr, flush=True)

    tally = carry_out(cases, row.judge, on_verdict, row.apart, row.at_once)
    return Soaked(row, tally, time.monotonic() - began)


def table(soaked: list[Soaked], cases: str) -> str:
    """Markdown: a line of where and when, then a row each."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    clean = not subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    lines = [
        f"{cases}, commit {commit.stdout.strip() or 'not known'}{'' if clean else ' with changes'}, "
        f"{datetime.now(UTC):%Y-%m-%d}, {_machine()}.",
        "",
        "| row | fault | effective / attempted | faults that fired | failures | time |",
        "|---|---|---|---|---|---|",
    ]
    for each in soaked:
        tally = each.tally
        counts = f"{tally.effective} / {tally.attempted} | {tally.faults} | {len(tally.failures)} | {each.seconds:.0f} s"
        lines.append(f"| {each.row.number} | {each.row.fault} | {counts} |")
    return "\n".join(lines)


def _machine() -> str:
    processors = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = processors[0].partition(":")[2].strip() if processors else platform.machine()
    return f"{len(processors)} x {model}, Linux {platform.release()}"


def main(argv: list[str] | None = None) -> int:
    """The program; its exit code is 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--row", type=int, choices=sorted({row.number for row in ALL}), help="this row alone; without it all rows"
    )
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="the same seed draws the same cases; default: the time"
    )
    parser.add_argument(
        "--n", type=int, help="so many cases of each row, kills in rows 4 and 5; default: as many as the table wants"
    )
    parser.add_argument("--fixed", action="store_true", help="the fixed cases, not drawn ones")
    arguments = parser.parse_args(argv)
    soaked = []
    for row in ALL:
        if arguments.row in (None, row.number):
            count = len(row.fixed()) if arguments.fixed else arguments.n or row.soak
            cases = row.fixed() if arguments.fixed else drawn(row, arguments.seed, count)
            soaked.append(soak(row, cases, count))
    print(table(soaked, "The fixed cases" if arguments.fixed else f"Seed {arguments.seed}"))
    return 1 if any(each.tally.failures for each in soaked) else 0


if __name__ == "__main__":
    sys.exit(main())
