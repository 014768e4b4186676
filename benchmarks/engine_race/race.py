"""One case from start to end: the same start on both sides, the losses compared, then turns, and what the floors say."""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

from benchmarks.engine_race.cases import Case
from benchmarks.turns import Side

LOSS_STEPS = 10
LOSS_TOLERANCE = 1e-3
MEMORY_STEPS = 3
TRIALS = 3  # turns of each of PyTorch's variants before the fastest is chosen
LEAST_STEPS = 3  # of a turn, so that the checksum at a stretch's end weighs no more than in a job


@final
@dataclass
class Outcome:
    """What was measured, round by round: seconds of a step, and of the sgemm peak's floating-point operations."""

    case: Case
    shards: dict[str, int]
    variant: str = ""
    step_s: dict[str, list[float]] = field(default_factory=dict)
    peak_flops: list[float] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)

    def ratios(self, ours: str) -> list[float]:
        """Our samples/s over PyTorch's, by round."""
        return [theirs / own for own, theirs in zip(self.step_s[ours], self.step_s["torch"], strict=True)]

    def ratio(self, ours: str) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios(ours))

    def samples_per_s(self, side: str) -> float:
        """Of the median step."""
        return self.case.batch / statistics.median(self.step_s[side])

    @property
    def peak_share(self) -> float | None:
        """Median share of the sgemm peak that the products of our step in one shard reach; None unless the net is dense."""
        if not self.peak_flops:
            return None
        flops = self.case.product_flops
        return statistics.median(flops / step / peak for step, peak in zip(self.step_s["one"], self.peak_flops, strict=True))

    def memory_ratio(self, ours: str) -> float | None:
        """Our peak memory over PyTorch's; None where it is not measured."""
        return self.memory_bytes[ours] / self.memory_bytes["torch"] if self.memory_bytes else None

    def loss_error(self, ours: str) -> float | None:
        """Largest relative difference of the first steps' losses, NaN if any is; None where shards compute something else."""
        if ours not in self.losses:
            return None
        pairs = zip(self.losses[ours], self.losses["torch"], strict=True)
        errors = [abs(own - theirs) / abs(theirs) for own, theirs in pairs]
        return max(errors, key=lambda error: (math.isnan(error), error))

    def missed(self) -> list[str]:
        """What is below its floor, in words."""
        case, share = self.case, self.peak_share
        checks = [(self.ratio("one"), case.floor, "speed in one shard"), (self.ratio("default"), case.default_floor, "speed")]
        if share is not None and case.peak_floor is not None:
            checks.append((share, case.peak_floor, "share of the sgemm peak"))
        found = [f"{what} {value:.2f} < {floor}" for value, floor, what in checks if value < floor]
        limit = case.memory_limit
        for ours, words in (("one", "memory in one shard"), ("default", "memory")):
            memory, error = self.memory_ratio(ours), self.loss_error(ours)
            if memory is not None and limit is not None and memory > limit:
                found.append(f"{words} {memory:.2f} > {limit}")
            if error is not None and not error <= LOSS_TOLERANCE:
                found.append(f"losses differ by {error:.1e} ({ours})")
        return found


def race(case: Case, torch_python: str, seconds: float, rounds: int, say: Callable[[str], None]) -> Outcome:
    """Runs both sides in turn, each in a process of its own; a turn takes about `seconds`; `rounds` is at least 1."""
    with tempfile.TemporaryDirectory(prefix="lockstep-benchmark-") as folder:
        with _ours(case, folder) as ours:
            outcome = Outcome(case, ours.ask("start"))
            with _theirs(case, folder, torch_python) as theirs:
                _compare_losses(outcome, ours, theirs, say)
                _take_turns(outcome, ours, theirs, seconds, rounds, say)
        if case.memory_limit is not None:
            _weigh(outcome, folder, torch_python)
            say(f"{case.name}: memory " + ", ".join(f"{side} {size >> 20} MiB" for side, size in outcome.memory_bytes.items()))
    return outcome


def _ours(case: Case, folder: str) -> Side:
    return Side(sys.executable, "benchmarks.engine_race.ours", (case.name, folder))


def _theirs(case: Case, folder: str, torch_python: str) -> Side:
    return Side(torch_python, "benchmarks.engine_race.theirs", (case.name, folder))


def _compare_losses(outcome: Outcome, ours: Side, theirs: Side, say: Callable[[str], None]) -> None:
    """Fills the losses of the first steps; all variants of PyTorch must agree."""
    kept: dict[str, list[float]] = {"one": ours.ask("losses", variant="one", steps=LOSS_STEPS)}
    if not outcome.case.shards_matter:
        kept["default"] = ours.ask("losses", variant="default", steps=LOSS_STEPS)
    for variant in theirs.ask("variants"):
        kept["torch"] = theirs.ask("losses", variant=variant, steps=LOSS_STEPS)
        outcome.losses = kept
        say(
            f"{outcome.case.name}: losses {kept['one'][0]:.4f} to {kept['one'][-1]:.4f}, "
            f"PyTorch ({variant}) {kept['torch'][0]:.4f} to {kept['torch'][-1]:.4f}"
        )
        if not (outcome.loss_error("one") or 0) <= LOSS_TOLERANCE:
            break


def _take_turns(outcome: Outcome, ours: Side, theirs: Side, seconds: float, rounds: int, say: Callable[[str], None]) -> None:
    contestants: list[tuple[str, Side, str]] = [(shards, ours, shards) for shards in ("one", "default")]
    if outcome.shards["one"] == outcome.shards["default"]:
        contestants.pop()
    contestants += [(variant, theirs, variant) for variant in theirs.ask("variants")]
    steps: dict[str, int] = {}
    for name, side, variant in contestants:
        side.ask("turn", variant=variant, steps=LEAST_STEPS)
        trial = side.ask("turn", variant=variant, steps=LEAST_STEPS)
        steps[name] = max(LEAST_STEPS, round(LEAST_STEPS * seconds / max(trial, 1e-6)))

    def turn(name: str, side: Side, variant: str) -> float:
        spent: float = side.ask("turn", variant=variant, steps=steps[name])
        return spent / steps[name]

    variants = [contestant for contestant in contestants if contestant[1] is theirs]
    tried = {contestant[0]: [turn(*contestant) for _ in range(TRIALS)] for contestant in variants}
    outcome.variant = min(tried, key=lambda name: statistics.median(tried[name]))
    racers = [contestant for contestant in contestants if contestant[1] is ours or contestant[0] == outcome.variant]
    times: dict[str, list[float]] = {name: [] for name, _, _ in racers}
    for number in range(rounds):
        if outcome.case.widths:
            outcome.peak_flops.append(ours.ask("peak"))
        # Every other round in the other order, so that nobody always comes after the same.
        for name, side, variant in racers if number % 2 == 0 else racers[::-1]:
            times[name].append(turn(name, side, variant))
        say(
            f"{outcome.case.name}: round {number + 1}: "
            + ", ".join(f"{name} {1e6 * s[-1]:.0f} us" for name, s in times.items())
        )
    outcome.step_s = {"torch": times.pop(outcome.variant), **times}
    outcome.step_s.setdefault("default", times["one"])


def _weigh(outcome: Outcome, folder: str, torch_python: str) -> None:
    """Peak memory of a step, each in a fresh process."""
    for name in ("one", "default"):
        with _ours(outcome.case, folder) as ours:
            outcome.memory_bytes[name] = ours.ask("memory", variant=name, steps=MEMORY_STEPS)
    with _theirs(outcome.case, folder, torch_python) as theirs:
        outcome.memory_bytes["torch"] = theirs.ask("memory", variant=outcome.variant, steps=MEMORY_STEPS)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """All that was measured, round by round, and what was made of it."""
    return {
        "case": outcome.case.name,
        "shards": outcome.shards,
        "pytorch_variant": outcome.variant,
        "ratio": {ours: outcome.ratio(ours) for ours in ("one", "default")},
        "peak_share": outcome.peak_share,
        "memory_bytes": outcome.memory_bytes,
        "loss_error": {ours: outcome.loss_error(ours) for ours in ("one", "default")},
        "missed": outcome.missed(),
        "step_seconds": outcome.step_s,
        "sgemm_flops_per_second": outcome.peak_flops,
    }
