"""The other workers of a group: how they are named, and the error that says which of them is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from lockstep.contract.errors import LockstepError
from worker.limits import STEP_DEADLINE_FACTOR


@final
class PeerError(LockstepError):
    """A peer did not come in time, ended, or its link broke. The group is over; `missing_ranks` are to be looked at.

    A link may be silent both ways: then these wait, too, and give up by themselves within `patience_s`.
    """

    def __init__(self, message: str, missing_ranks: Sequence[int], step: int, patience_s: float = 0.0) -> None:
        self.message, self.missing_ranks, self.step, self.patience_s = message, tuple(missing_ranks), step, patience_s
        super().__init__(message, self.missing_ranks, step, patience_s)

    def __str__(self) -> str:
        return self.message


def peer_name(rank: int, nodes: Sequence[str]) -> str:
    """How people are told of a worker: "worker 3 (node b)"; a node by the first 12 characters of its id."""
    return f"worker {rank} (node {nodes[rank][:12]})"


@final
class Deadlines:
    """How long a wait for a peer may last: the floor, or so many times the median step; before a group's first step a floor of
    its own."""

    def __init__(self, floor_s: float, first_step_s: float) -> None:
        self._floor_s = floor_s
        self.seconds = max(floor_s, first_step_s)

    def for_other_nodes_s(self, wait: int) -> float:
        """The deadline of the first, second, ... wait for other nodes in a step: each a little longer than the one before, so
        that who waits beside the missing worker can name it before those who wait for that one."""
        return (1 + 0.25 * wait) * self.seconds

    def after(self, median_step_s: float) -> None:
        """Steps have been taken; their median is known."""
        self.seconds = max(self._floor_s, STEP_DEADLINE_FACTOR * median_step_s)
