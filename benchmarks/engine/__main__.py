"""Races our engine against PyTorch eager, case by case, and prints the table. Exit status 1 where a floor is missed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import date
from pathlib import Path

from benchmarks.engine.cases import BY_NAME, CASES
from benchmarks.engine.race import Outcome, as_json, race
from benchmarks.engine.turns import ROOT

HEADS = (
    *("model", "one shard", "floor", "aim", "default shards", "floor", "ours, samples/s", "PyTorch, samples/s (its best way)"),
    *("share of sgemm peak", "losses differ by", "floors"),
)


def table_row(outcome: Outcome) -> str:
    """A line of Markdown; in brackets the quartiles."""
    case, share, missed = outcome.case, outcome.peak_share, outcome.missed()
    peak = "" if share is None else f"{share:.2f}" + (f" (floor {case.peak_floor})" if case.peak_floor else "")
    errors = [error for error in (outcome.loss_error("one"), outcome.loss_error("default")) if error is not None]
    cells = [
        case.title,
        _ratio(outcome, "one"),
        f"{case.floor:g}",
        f"{case.aim:g}",
        f"{_ratio(outcome, 'default')} V={outcome.shards['default']}",
        f"{case.default_floor:g}",
        f"{outcome.samples_per_s('one'):,.0f}; {outcome.samples_per_s('default'):,.0f}",
        f"{outcome.samples_per_s('torch'):,.0f} ({outcome.variant})",
        peak,
        f"{max(errors):.0e}",
        "below: " + "; ".join(missed) if missed else "holds",
    ]
    return "| " + " | ".join(cells) + " |"


def _ratio(outcome: Outcome, ours: str) -> str:
    ordered = sorted(outcome.ratios(ours))
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    return f"**{outcome.ratio(ours):.2f}** [{low:.2f} {high:.2f}]"


def memory_line(outcome: Outcome) -> str:
    """Peak memory in words."""
    sizes = {side: size / 2**20 for side, size in outcome.memory_bytes.items()}
    shares = ", ".join(f"{outcome.memory_ratio(ours):.2f} (V={outcome.shards[ours]})" for ours in ("one", "default"))
    return (
        f"Peak memory of a step of {outcome.case.title}: {sizes['one']:.0f} and {sizes['default']:.0f} MiB against PyTorch's "
        f"{sizes['torch']:.0f} MiB: {shares}; at most {outcome.case.memory_limit}."
    )


def machine(core: int) -> str:
    """The processor's name, and what was measured on it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{date.today()}, {names[0] if names else 'unknown processor'}, core {core} of {os.cpu_count()}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--torch-python", default=str(ROOT / ".venv-torch/bin/python"), help="of the environment with PyTorch")
    parser.add_argument("--rows", nargs="+", choices=sorted(BY_NAME), metavar="ROW", help=f"of {', '.join(BY_NAME)}")
    parser.add_argument("--seconds", type=float, default=0.3, help="of one turn, at least three steps (default 0.3)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side (default 15)")
    parser.add_argument(
        "--core", type=int, default=max(os.sched_getaffinity(0)), help="the one core of both (default: the last)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    if not Path(options.torch_python).exists():
        parser.error(f"--torch-python: {options.torch_python} is not there; benchmarks/README.md says how to make it")
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds must be at least 1, --seconds above 0")
    os.sched_setaffinity(0, {options.core})  # the sides inherit it

    outcomes = []
    for case in CASES:
        if options.rows is None or case.name in options.rows:
            outcome = race(
                case, options.torch_python, options.seconds, options.rounds, lambda text: print(text, file=sys.stderr)
            )
            outcomes.append(outcome)
            print(table_row(outcome), file=sys.stderr)

    print(machine(options.core))
    print()
    print("| " + " | ".join(HEADS) + " |")
    print("|---" * len(HEADS) + "|")
    for outcome in outcomes:
        print(table_row(outcome))
    for outcome in outcomes:
        if outcome.memory_bytes:
            print()
            print(memory_line(outcome))
    if options.json is not None:
        described = {"machine": machine(options.core), "cases": [as_json(outcome) for outcome in outcomes]}
        options.json.write_text(json.dumps(described, indent=1) + "\n")
    return 1 if any(outcome.missed() for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
