"""A case: which points a job is started with, what else is done to it, and what is expected of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from coordinator.group.local import NODE
from tests.faults.fault_job import EPOCHS


@final
@dataclass(frozen=True, slots=True)
class Case:
    """One job of a row of the table.

    `points` go into its orders, and count only when all of them fired; with `fired`, when so many did. Stopped processes are
    continued after `wakes_after_s`, or never. `environments` are variables of single workers, by the order of their start;
    they are started on the `nodes` in turn.
    With fewer than `least` workers a run waits. `words` must be found in what is said of the faults; `newest_lost` says that
    a checkpoint may be passed over. With `fails` nothing can mend it: the job must fail.
    """

    row: int
    name: str
    points: tuple[str, ...]
    workers: int = 2
    least: int = 1
    epochs: int = EPOCHS
    fired: int | None = None
    wakes_after_s: float | None = None
    environments: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    nodes: tuple[str, ...] = (NODE,)
    words: tuple[str, ...] = ()
    newest_lost: bool = False
    fails: bool = False
    deadline_s: float = 90.0

    @property
    def expected(self) -> int:
        """How many points must fire."""
        return len(self.points) if self.fired is None else self.fired


@final
@dataclass(frozen=True, slots=True)
class Fired:
    """A point that fired: as it was written, in which process, at which step (0 where the place knows none)."""

    point: str
    pid: int
    step: int
