"""What a simulation itself knows of a run, to compare with what the run says: rows of dropped steps, and failures to tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from coordinator.group.group import WorkerLoss
from coordinator.sharding import Rows
from lockstep.internal.v1 import worker_pb2


@final
class Ledger:
    """Of one run."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._reached = 0
        self.dropped_rows = 0
        # What must be told, of each failure: the texts, one of which is to stand in a word of the run; all of them, for losses.
        self.losses: list[str] = []
        self.failures: list[list[str]] = []

    def asked(self, first_step: int) -> None:
        """Steps are asked for from there on: what was reached beyond it is dropped."""
        self.dropped_rows += self._rows.between(first_step - 1, self._reached)
        self._reached = first_step - 1

    def taken(self, step: int) -> None:
        """A worker says that all steps up to this one were taken."""
        self._reached = max(self._reached, step)

    def stillborn(self, losses: Sequence[WorkerLoss]) -> None:
        """The run learned that these died before they joined."""
        self.losses += [loss.text for loss in losses]

    def failed(self, losses: Sequence[WorkerLoss], failures: Sequence[worker_pb2.Failure], consequences: bool) -> None:
        """A call was answered with these; `consequences`: failures that followed from others, which are told already."""
        self._reached = max(self._reached, *(failure.step for failure in failures), 0)
        self.losses += [f"pid {loss.pid}) {loss.text}" for loss in losses]
        if failures and not losses and not consequences:
            self.failures.append([failure.text for failure in failures])
