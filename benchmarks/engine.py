"""Races our engine against PyTorch eager, case by case, and prints the table. Exit status 1 where a floor is missed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.engine_race.cases import BY_NAME, CASES
from benchmarks.engine_race.race import Outcome, as_json, race
from benchmarks.machine import add_kernel, add_torch, add_turns, check_torch, check_turns, choose_kernel, machine
from benchmarks.tables import row, say, spread, table, verdict

HEADS = (
    *("model", "one shard", "floor", "aim", "default shards", "floor", "ours, samples/s", "PyTorch, samples/s (its best way)"),
    *("share of sgemm peak", "losses differ by", "floors"),
)


def cells(outcome: Outcome) -> list[str]:
    """A row of the table; in brackets the quartiles."""
    case, share, missed = outcome.case, outcome.peak_share, outcome.missed()
    peak = "" if share is None else f"{share:.2f}" + (f" (floor {case.peak_floor})" if case.peak_floor else "")
    errors = [error for error in (outcome.loss_error("one"), outcome.loss_error("default")) if error is not None]
    return [
        case.title,
        spread(outcome.ratios("one")),
        f"{case.floor:g}",
        f"{case.aim:g}",
        f"{spread(outcome.ratios('default'))} V={outcome.shards['default']}",
        f"{case.default_floor:g}",
        f"{outcome.samples_per_s('one'):,.0f}; {outcome.samples_per_s('default'):,.0f}",
        f"{outcome.samples_per_s('torch'):,.0f} ({outcome.variant})",
        peak,
        f"{max(errors):.0e}",
        verdict(missed),
    ]


def memory_line(outcome: Outcome) -> str:
    """Peak memory in words."""
    sizes = {side: size / 2**20 for side, size in outcome.memory_bytes.items()}
    shares = ", ".join(f"{outcome.memory_ratio(ours):.2f} (V={outcome.shards[ours]})" for ours in ("one", "default"))
    return (
        f"Peak memory of a step of {outcome.case.title}: {sizes['one']:.0f} and {sizes['default']:.0f} MiB against PyTorch's "
        f"{sizes['torch']:.0f} MiB: {shares}; at most {outcome.case.memory_limit}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/engine.py", description=__doc__)
    add_torch(parser)
    parser.add_argument("--rows", nargs="+", choices=sorted(BY_NAME), metavar="ROW", help=f"of {', '.join(BY_NAME)}")
    add_turns(parser, 0.3, ", at least three steps", 15)
    parser.add_argument(
        "--core", type=int, default=max(os.sched_getaffinity(0)), help="the one core of both (default: the last)"
    )
    add_kernel(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    check_torch(parser, options.torch_python)
    check_turns(parser, options)
    os.sched_setaffinity(0, {options.core})  # the sides inherit it, and the environment
    choose_kernel(options.kernel)

    outcomes = []
    for case in CASES:
        if options.rows is None or case.name in options.rows:
            outcome = race(case, options.torch_python, options.seconds, options.rounds, say)
            outcomes.append(outcome)
            say(row(cells(outcome)))

    print(f"{machine()}, core {options.core}, OpenBLAS kernel: {options.kernel or 'native'}")
    print(table(HEADS, map(cells, outcomes)))
    for outcome in outcomes:
        if outcome.memory_bytes:
            print()
            print(memory_line(outcome))
    if options.json is not None:
        described = {"machine": f"{machine()}, core {options.core}", "cases": [as_json(outcome) for outcome in outcomes]}
        options.json.write_text(json.dumps(described, indent=1) + "\n")
    return 1 if any(outcome.missed() for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
