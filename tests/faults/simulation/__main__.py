"""Simulations from the command line: `--seed S` runs one and prints its diary, `--n N --first S` runs many and sums them up.

Ends with 1 where something is wrong. Progress on stderr, the summary on stdout.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.faults.simulation.plan import Kind
from tests.faults.simulation.simulation import Bench


def one(seed: int) -> int:
    """Prints the diary of a seed."""
    with Bench() as bench:
        found = bench.seed(seed, kept=True)
    print("\n".join(found.lines))
    print(f"seed {seed}: {found.state} after {found.runs} runs and {found.seconds:.1f} s; {len(found.wrong)} violations")
    return 1 if found.wrong else 0


def many(first: int, count: int, show: int) -> int:
    """Runs many and sums up."""
    planned: Counter[Kind] = Counter()
    struck: Counter[Kind] = Counter()
    states: Counter[str] = Counter()
    runs, simulated_s, wrong = 0, 0.0, []
    began = said = time.monotonic()
    began_cpu = time.process_time()
    with Bench() as bench:
        for seed in range(first, first + count):
            found = bench.seed(seed)
            planned.update(fault.kind for fault in found.planned)
            struck += found.faults.struck
            states[found.state] += 1
            runs += found.runs
            simulated_s += found.seconds
            if found.wrong:
                wrong.append(seed)
                if len(wrong) <= show:
                    print(f"seed {seed}: {found.wrong[0]}", file=sys.stderr)
            if time.monotonic() - said > 5:
                said = time.monotonic()
                print(f"{seed + 1 - first} of {count} seeds, {len(wrong)} with violations", file=sys.stderr)
    took, cpu_ms = time.monotonic() - began, 1000 * (time.process_time() - began_cpu) / count
    print(f"{count} seeds from {first}: {took:.1f} s, {cpu_ms:.1f} ms of CPU each; {runs} runs, {simulated_s / 3600:.0f} h simulated")
    print("ends: " + ", ".join(f"{state} {number}" for state, number in sorted(states.items())))
    print("faults that struck, of those planned:")
    for kind in Kind:
        print(f"  {struck[kind]:6d} of {planned[kind]:6d}  {kind.value}")
    print(f"seeds with violations: {len(wrong)}" + (f", {wrong[:20]}" if wrong else ""))
    return 1 if wrong else 0


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.simulation", description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--show", type=int, default=10, help="violations that are shown")
    arguments = parser.parse_args()
    return one(arguments.seed) if arguments.seed is not None else many(arguments.first, arguments.n, arguments.show)


if __name__ == "__main__":
    sys.exit(main())
