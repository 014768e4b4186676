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
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.campaign import Tally, Verdict, carry_out
from tests.faults.case import Case
from tests.faults.rows import ROWS, Row, drawn

ROOT = Path(__file__).parent.parent.parent


def soak(row: Row, cases: Iterable[Case], count: int) -> Tally:
    """So many cases of a row, with a line for each failure and now and then one for the rest."""
    began, done = time.monotonic(), 0

    def on_verdict(verdict: Verdict) -> None:
        nonlocal done
        done += 1
        if verdict.failure:
            print(f"soak: {verdict.failure}", file=sys.stderr, flush=True)
        if done % 10 == 0:
            print(f"soak: row {row.number}: {done} of {count} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    return carry_out(cases, on_verdict)


def table(tallies: dict[int, Tally], cases: str, seconds: dict[int, float]) -> str:
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
    for number, tally in tallies.items():
        counts = f"{tally.effective} / {tally.attempted} | {tally.faults} | {len(tally.failures)} | {seconds[number]:.0f} s"
        lines.append(f"| {number} | {ROWS[number].fault} | {counts} |")
    return "\n".join(lines)


def _machine() -> str:
    processors = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = processors[0].partition(":")[2].strip() if processors else platform.machine()
    return f"{len(processors)} x {model}, Linux {platform.release()}"


def main(argv: list[str] | None = None) -> int:
    """The program; its exit code is 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--row", type=int, choices=sorted(ROWS), help="this row alone; without it all rows")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="the same seed draws the same cases; default: the time"
    )
    parser.add_argument("--n", type=int, help="so many cases of each row, kills in row 5; default: as many as the table wants")
    parser.add_argument("--fixed", action="store_true", help="the fixed cases, not drawn ones")
    arguments = parser.parse_args(argv)
    rows = [ROWS[arguments.row]] if arguments.row else list(ROWS.values())
    tallies: dict[int, Tally] = {}
    seconds: dict[int, float] = {}
    for row in rows:
        began = time.monotonic()
        count = len(row.fixed()) if arguments.fixed else arguments.n or row.soak
        cases = row.fixed() if arguments.fixed else drawn(row, arguments.seed, count)
        tallies[row.number] = soak(row, cases, count)
        seconds[row.number] = time.monotonic() - began
    print(table(tallies, "The fixed cases" if arguments.fixed else f"Seed {arguments.seed}", seconds))
    return 1 if any(tally.failures for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
