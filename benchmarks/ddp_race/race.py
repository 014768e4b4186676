"""One case from start to end: the same start on both sides, the losses compared, then turns, and what the floors say."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from benchmarks.ddp_race.cases import LEAST_SHARDS, WORKERS, DdpCase
from benchmarks.ddp_race.ours import Jobs, losses
from benchmarks.tables import below, ratios, say
from benchmarks.turns import Group, Side
from lockstep.contract.arithmetic import default_shards
from tests.promises.service import Service

LOSS_STEPS = 8
LOSS_TOLERANCE = 1e-3
TRIAL_S = 1.0  # a trial of each of PyTorch's ways, before its fastest is chosen
FIRST_JOB_S = 2.0  # of ours, whose curve has a point for each step, and which shows how fast the others will be
CURVE_STEPS = 2000
MANY_SHARDS = 8

# Names of the contestants.
OURS, DEFAULT, ONE_WORKER, MANY = "ours", "ours, default shards", "ours, one worker", "ours, 8 shards"
DDP, ONE_DDP, TORCH = "DDP", "one DDP process", "one PyTorch process"

Turn = Callable[[float], float]  # seconds -> samples/s


@final
@dataclass
class Outcome:
    """Samples/s by contestant and round, and PyTorch's ways that were the fastest."""

    case: DdpCase
    default_shards: int
    ways: dict[str, str] = field(default_factory=dict)
    samples_per_s: dict[str, list[float]] = field(default_factory=dict)
    loss_error: float | None = None

    def ratios(self, ours: str, other: str) -> list[float] | None:
        """By round; None where either did not race."""
        found = self.samples_per_s
        return ratios(found[ours], found[other]) if ours in found and other in found else None

    def missed(self) -> list[str]:
        """What is below its floor, in words."""
        case = self.case
        checks = [
            ("over DDP", OURS, DDP, case.ddp_floor),
            ("over one PyTorch process", OURS, TORCH, case.torch_floor),
            ("over one worker", OURS, ONE_WORKER, case.scaling_floor),
            ("8 shards over 2", MANY, OURS, case.shards_floor),
        ]
        found = []
        for words, ours, other, floor in checks:
            by_round = self.ratios(ours, other)
            if floor is not None and by_round is not None:
                found += below([(words, statistics.median(by_round), floor)])
        if self.loss_error is not None and not self.loss_error <= LOSS_TOLERANCE:
            found.append(f"losses differ by {self.loss_error:.1e}")
        return found


def race(case: DdpCase, service: Service, folder: Path, torch_python: str, seconds: float, rounds: int) -> Outcome:
    """Runs all sides in turn; a turn takes about `seconds`; `rounds` is at least 1."""
    jobs = Jobs(service, folder, case)
    outcome = Outcome(case, default_shards(case.batch))
    if case.ddp_floor is None:  # ours against ours
        speed = jobs.turn(LEAST_SHARDS, WORKERS, FIRST_JOB_S, 20_000)
        _take_turns(outcome, _our_turns(case, jobs, speed), seconds, rounds)
        return outcome
    peers = _Peers(case, folder, torch_python)
    try:
        expected = peers.choose(outcome)
        epochs = min(FIRST_JOB_S * expected / case.rows, CURVE_STEPS * case.batch // case.rows)
        speed, events = jobs.timed(jobs.spec(LEAST_SHARDS, WORKERS, max(1, int(epochs))))
        curve, firsts = losses(events), enumerate(peers.first_losses, start=1)
        outcome.loss_error = max(abs(curve[step] - loss) / abs(loss) for step, loss in firsts)
        say(f"{case.title}: the losses of {LOSS_STEPS} steps differ by {outcome.loss_error:.1e}")
        _take_turns(outcome, {**_our_turns(case, jobs, speed), **peers.turns}, seconds, rounds)
    finally:
        peers.close()
    return outcome


def _our_turns(case: DdpCase, jobs: Jobs, expected: float) -> dict[str, Turn]:
    def turn(shards: int, workers: int) -> Turn:
        return lambda seconds: jobs.turn(shards, workers, seconds, expected)

    turns = {OURS: turn(LEAST_SHARDS, WORKERS)}
    if case.shards_floor is not None:
        return {**turns, MANY: turn(MANY_SHARDS, WORKERS)}
    if default_shards(case.batch) != LEAST_SHARDS:
        turns[DEFAULT] = turn(default_shards(case.batch), WORKERS)
    if case.scaling_floor is not None:
        turns[ONE_WORKER] = turn(LEAST_SHARDS, 1)
    return turns


def _take_turns(outcome: Outcome, turns: dict[str, Turn], seconds: float, rounds: int) -> None:
    outcome.samples_per_s = {name: [] for name in turns}
    for number in range(rounds):
        # Every other round in the other order, so that nobody always comes after the same.
        for name in turns if number % 2 == 0 else [*turns][::-1]:
            outcome.samples_per_s[name].append(turns[name](seconds))
        latest = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in outcome.samples_per_s.items())
        say(f"{outcome.case.title}: round {number + 1}: {latest} samples/s")


@final
class _Peers:
    """PyTorch's processes: groups of two, pinned and free, a group of one, and a plain process."""

    def __init__(self, case: DdpCase, folder: Path, torch_python: str) -> None:
        self._case, self._folder, self._python = case, folder, torch_python
        self._groups = {
            **{f"{DDP} {placing}": self._group(WORKERS, placing) for placing in ("pinned", "free")},
            ONE_DDP: self._group(1, "free"),
            TORCH: self._group(0, "free"),
        }
        self.turns: dict[str, Turn] = {}
        self.first_losses: list[float] = []

    def _group(self, processes: int, placing: str) -> Group:
        meeting_file = self._folder / f"{self._case.name}-{processes}-{placing}"
        options = ["--processes", str(processes), "--meeting-file", str(meeting_file)]
        options += ["--pinned"] * (placing == "pinned")
        module, threads = "benchmarks.ddp_race.theirs", 1 if processes else os.cpu_count() or 1
        return Group(
            [
                Side(self._python, module, [self._case.name, str(self._folder), "--rank", str(rank), *options], threads)
                for rank in range(max(1, processes))
            ]
        )

    def choose(self, outcome: Outcome) -> float:
        """Finds the fastest way of each contestant, and the first losses; gives DDP's samples/s."""
        shares = [group.ask("losses", steps=LOSS_STEPS) for group in self._groups.values()]
        by_step = zip(*shares[0], strict=True)
        self.first_losses = [statistics.mean(step) for step in by_step]  # each rank has as many rows
        speed = 0.0
        for name, groups in ((DDP, (f"{DDP} pinned", f"{DDP} free")), (ONE_DDP, (ONE_DDP,)), (TORCH, (TORCH,))):
            tried = {
                (group, to_none, threads): self._trial(group, to_none, threads)
                for group in groups
                for to_none in (True, False)
                for threads in self._threads(group)
            }
            group, to_none, threads = min(tried, key=lambda way: tried[way])
            words = [group.removeprefix(DDP).strip()] if len(groups) > 1 else []
            words += ["gradients to none" if to_none else "gradients to zero"]
            words += [f"{threads} of {os.cpu_count()} threads"] if group == TORCH else []
            outcome.ways[name] = ", ".join(words)
            step_s = tried[group, to_none, threads]
            self.turns[name] = self._turn(group, to_none, threads, step_s)
            say(f"{self._case.title}: {name}: {outcome.ways[name]}, {self._case.batch / step_s:,.0f} samples/s")
            if name == DDP:
                speed = self._case.batch / step_s
        return speed

    def _threads(self, group: str) -> Sequence[int]:
        return sorted({1, os.cpu_count() or 1}) if group == TORCH else (1,)

    def _trial(self, group: str, to_none: bool, threads: int) -> float:
        """Seconds of a step."""
        self._seconds(group, 3, to_none, threads)
        steps = max(3, int(3 * TRIAL_S / self._seconds(group, 3, to_none, threads)))
        return self._seconds(group, steps, to_none, threads) / steps

    def _seconds(self, group: str, steps: int, to_none: bool, threads: int) -> float:
        return float(max(self._groups[group].ask("turn", steps=steps, to_none=to_none, threads=threads)))

    def _turn(self, group: str, to_none: bool, threads: int, step_s: float) -> Turn:
        def turn(seconds: float) -> float:
            steps = max(3, round(seconds / step_s))
            return steps * self._case.batch / self._seconds(group, steps, to_none, threads)

        return turn

    def close(self) -> None:
        """Ends all processes."""
        for group in self._groups.values():
            group.__exit__(None, None, None)
