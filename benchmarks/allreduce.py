"""Races our reduction alone, over shared memory and TCP, against gloo's all_reduce. Exit status 1 where a floor is missed."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import final

from benchmarks.allreduce_race.ours import WORKERS
from benchmarks.machine import add_kernel, add_torch, add_turns, check_torch, check_turns, choose_kernel, machine
from benchmarks.tables import below, ratios, say, spread, table, verdict
from benchmarks.turns import Group, Side

GLOO = ("gloo pinned", "gloo free")
NODES = {"shared memory": ("a", "a"), "TCP on loopback": ("a", "b")}
TRIAL = 5  # reductions, before so many are known to fit a turn
TRIES = 2  # turns of each of gloo's placings, before the better one is chosen
HEADS = ("bytes", "transport", "gloo over ours", "floor", "ours, us", "gloo, us (its better placing)", "floors")


@final
@dataclass(frozen=True)
class Size:
    """A length of the vector, and the floors of gloo's time over ours, by transport."""

    title: str
    floats: int
    floors: dict[str, float]


SIZES = (
    Size("16 KB", 4 << 10, {"shared memory": 100}),
    Size("1 MB", 256 << 10, {}),
    Size("40 MB", 10 << 20, {"shared memory": 5, "TCP on loopback": 1.2}),
)


def verdict_of(size: Size, transport: str, by_round: list[float]) -> list[str]:
    """What is below its floor, in words."""
    floor = size.floors.get(transport)
    return [] if floor is None else below([(f"{size.title} over {transport}", statistics.median(by_round), floor)])


def race(size: Size, ours: Group, gloo: dict[str, Group], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Seconds of one reduction by contestant and round, gloo's better placing under "gloo"."""
    for name, nodes in NODES.items():
        endpoints = ours.ask("prepare", name=name, floats=size.floats, nodes=nodes)
        if not all(ours.ask("connect", name=name, endpoints=endpoints)):
            raise ValueError(f"{size.title} over {name}: the reduction does not give the mean of the vectors")

    def ask(name: str, count: int) -> float:
        if name in gloo:
            return float(max(gloo[name].ask("turn", floats=size.floats, count=count))) / count
        return float(max(ours.ask("turn", name=name, count=count))) / count

    counts: dict[str, int] = {}
    for name in (*NODES, *gloo):
        ask(name, TRIAL)
        counts[name] = max(TRIAL, int(seconds / ask(name, TRIAL)))
    better = min(gloo, key=lambda name: min(ask(name, counts[name]) for _ in range(TRIES)))
    contestants = (*NODES, better)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in contestants if number % 2 == 0 else contestants[::-1]:
            times[name].append(ask(name, counts[name]))
    for name in NODES:
        ours.ask("close", name=name)
    say(f"{size.title}: " + ", ".join(f"{name} {1e6 * statistics.median(values):,.1f} us" for name, values in times.items()))
    return times


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/allreduce.py", description=__doc__)
    add_torch(parser)
    add_kernel(parser)
    add_turns(parser, 0.5, ", at least five reductions", 15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    check_torch(parser, options.torch_python)
    check_turns(parser, options)
    choose_kernel(options.kernel)

    rows, missed, kept = [], [], {}
    with tempfile.TemporaryDirectory(prefix="lockstep-benchmark-") as folder, ExitStack() as stack:
        ranks = [str(rank) for rank in range(WORKERS)]
        ours = stack.enter_context(Group([Side(sys.executable, "benchmarks.allreduce_race.ours", [rank]) for rank in ranks]))
        gloo = {}
        for name in GLOO:
            placing = name.removeprefix("gloo ")
            arguments = [str(WORKERS), str(Path(folder) / placing), placing]
            sides = [Side(options.torch_python, "benchmarks.allreduce_race.theirs", [rank, *arguments]) for rank in ranks]
            gloo[name] = stack.enter_context(Group(sides))
        for size in SIZES:
            times = race(size, ours, gloo, options.seconds, options.rounds)
            kept[size.title] = times
            (better,) = times.keys() - NODES
            for transport in NODES:
                by_round = ratios(times[better], times[transport])
                found = verdict_of(size, transport, by_round)
                missed += found
                microseconds = [f"{1e6 * statistics.median(times[name]):,.1f}" for name in (transport, better)]
                placing = better.removeprefix("gloo ")
                rows.append(
                    [
                        *(size.title, transport, spread(by_round), f"{size.floors.get(transport, '')}"),
                        *(microseconds[0], f"{microseconds[1]} ({placing})", verdict(found)),
                    ]
                )

    print(machine())
    print(table(HEADS, rows))
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), "seconds": kept}, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
