"""Races jobs of two workers on a real service against PyTorch DDP. Exit status 1 where a floor is missed."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.ddp_race.cases import BY_NAME, CASES, WORKERS
from benchmarks.ddp_race.race import DDP, DEFAULT, MANY, ONE_DDP, ONE_WORKER, OURS, TORCH, Outcome, race
from benchmarks.machine import (
    add_kernel,
    add_torch,
    add_turns,
    check_torch,
    check_turns,
    choose_kernel,
    end_on_sigterm,
    machine,
)
from benchmarks.tables import row, say, spread, table, verdict
from tests.promises.service import Service

HEADS = (
    *("model", "over DDP, V=2", "floor", "over DDP, default V", "over one PyTorch process, V=2", "floor"),
    *("2 workers over 1, V=2", "floor", "V=8 over V=2", "floor", "ours, samples/s (default V)", "DDP", "one DDP process"),
    *("one PyTorch process", "losses differ by", "floors"),
)


def cells(outcome: Outcome) -> list[str]:
    """A row of the table; in brackets the quartiles."""
    case = outcome.case

    def ratio(ours: str, other: str) -> str:
        by_round = outcome.ratios(ours, other)
        return "" if by_round is None else spread(by_round)

    def floor(value: float | None) -> str:
        return "" if value is None else f"{value:g}"

    def speed(name: str) -> str:
        values = outcome.samples_per_s.get(name)
        return "" if values is None else f"{statistics.median(values):,.0f}"

    def peer(name: str) -> str:
        return f"{speed(name)} ({outcome.ways[name]})" if name in outcome.ways else ""

    default = ratio(DEFAULT, DDP)
    return [
        case.title,
        *(ratio(OURS, DDP), floor(case.ddp_floor)),
        f"{default} V={outcome.default_shards}" if default else "",
        *(ratio(OURS, TORCH), floor(case.torch_floor)),
        *(ratio(OURS, ONE_WORKER), floor(case.scaling_floor)),
        *(ratio(MANY, OURS), floor(case.shards_floor)),
        speed(OURS) + (f" ({speed(DEFAULT)})" if default else ""),
        *(peer(DDP), peer(ONE_DDP), peer(TORCH)),
        "" if outcome.loss_error is None else f"{outcome.loss_error:.0e}",
        verdict(outcome.missed()),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/ddp.py", description=__doc__)
    add_torch(parser)
    add_kernel(parser)
    parser.add_argument("--rows", nargs="+", choices=sorted(BY_NAME), metavar="ROW", help=f"of {', '.join(BY_NAME)}")
    add_turns(parser, 30, "", 3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    check_torch(parser, options.torch_python)
    check_turns(parser, options)
    choose_kernel(options.kernel)
    end_on_sigterm()

    outcomes = []
    with tempfile.TemporaryDirectory(prefix="lockstep-benchmark-") as scratch:
        folder = Path(scratch)
        with Service(folder, slots=WORKERS) as service:
            for case in CASES:
                if options.rows is None or case.name in options.rows:
                    outcomes.append(race(case, service, folder, options.torch_python, options.seconds, options.rounds))
                    say(row(cells(outcomes[-1])))

    print(f"{machine()}, OpenBLAS kernel: {options.kernel or 'native'}")
    print(table(HEADS, map(cells, outcomes)))
    if options.json is not None:
        kept = [
            {
                "case": outcome.case.name,
                "ways": outcome.ways,
                "samples_per_second": outcome.samples_per_s,
                "loss_error": outcome.loss_error,
                "missed": outcome.missed(),
            }
            for outcome in outcomes
        ]
        options.json.write_text(json.dumps({"machine": machine(), "cases": kept}, indent=1) + "\n")
    return 1 if any(outcome.missed() for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
