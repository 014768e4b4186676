"""Simulations from the command line: `--seed S` runs one and prints its diary, `--n N --first S` runs many and sums them up,
`--pairs` runs all pairs of points.

Ends with 1 where something is wrong. Progress on stderr, the summary on stdout.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tests.faults.simulation.pairs import pairs
from tests.faults.simulation.plan import Kind, Moment, described
from tests.faults.simulation.simulation import Bench, Found

PROGRESS_S = 5.0


def one(seed: int) -> int:
    """Prints the diary of a seed."""
    with Bench() as bench:
        found = bench.seed(seed, kept=True)
    print("\n".join(found.lines))
    print(f"seed {seed}: {found.state} after {found.runs} runs and {found.seconds:.1f} s; {len(found.wrong)} violations")
    return 1 if found.wrong else 0


def seeds(bench: Bench, first: int, count: int) -> Iterator[tuple[str, Found]]:
    """The simulations of so many seeds."""
    for seed in range(first, first + count):
        yield f"seed {seed}", bench.seed(seed)


def all_pairs(bench: Bench) -> Iterator[tuple[str, Found]]:
    """The simulations of all pairs of points, at each moment of a call and each act."""
    for found in pairs(bench, list(Moment), every_act=True):
        yield described(found.planned), found


def many(simulations: Iterator[tuple[str, Found]], show: int) -> int:
    """Runs them and sums up; shows the first violations."""
    planned: Counter[Kind] = Counter()
    struck: Counter[Kind] = Counter()
    states: Counter[str] = Counter()
    count, runs, simulated_s = 0, 0, 0.0
    wrong: list[str] = []
    began, said, began_cpu = time.monotonic(), time.monotonic(), time.process_time()
    for count, (name, found) in enumerate(simulations, 1):
        planned.update(fault.kind for fault in found.planned)
        struck += found.faults.struck
        states[found.state] += 1
        runs, simulated_s = runs + found.runs, simulated_s + found.seconds
        if found.wrong:
            wrong.append(name)
            if len(wrong) <= show:
                print(f"{name}: {found.wrong[0]}", file=sys.stderr)
        if time.monotonic() - said > PROGRESS_S:
            said = time.monotonic()
            print(f"{count} simulations, {len(wrong)} with violations", file=sys.stderr)
    took_s, cpu_ms = time.monotonic() - began, 1000 * (time.process_time() - began_cpu) / max(1, count)
    print(f"{count} simulations of {runs} runs and {simulated_s / 3600:.0f} h: {took_s:.0f} s, {cpu_ms:.1f} ms of CPU each")
    print("ends: " + ", ".join(f"{state} {number}" for state, number in sorted(states.items())))
    print("faults that struck, of those planned:")
    for kind in Kind:
        if planned[kind]:
            print(f"  {struck[kind]:7d} of {planned[kind]:7d}  {kind.value}")
    print(f"with violations: {len(wrong)}" + (f"; {'; '.join(wrong[:show])}" if wrong else ""))
    return 1 if wrong else 0


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one and print what happened")
    parser.add_argument("--first", type=int, default=0, help="the first of many seeds")
    parser.add_argument("--n", type=int, default=2000, help="how many seeds")
    parser.add_argument("--pairs", action="store_true", help="all pairs of points instead of seeds")
    parser.add_argument("--show", type=int, default=10, help="violations that are shown")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return one(arguments.seed)
    with Bench() as bench:
        simulations = all_pairs(bench) if arguments.pairs else seeds(bench, arguments.first, arguments.n)
        return many(simulations, arguments.show)


if __name__ == "__main__":
    sys.exit(main())
