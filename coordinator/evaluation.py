"""An evaluation's result: the workers' sums over blocks of 256 rows, combined along the tree over all blocks. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from lockstep.contract.errors import InternalError
from lockstep.internal.v1 import worker_pb2


@final
@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean loss over the validation rows, and the part of them whose largest output is the label's (classes only)."""

    loss: float
    accuracy: float | None


def combine(sums: Iterable[worker_pb2.BlockSums], blocks: int, classes: bool) -> Evaluation:
    """node(a, b) = node(a, m) + node(m, b), m = (a + b) // 2, in float64. Raises InternalError when a block is missing."""
    given = {(part.first_block, part.end_block): part for part in sums}

    def node(first: int, end: int) -> tuple[float, float, int, int]:
        part = given.get((first, end))
        if part is not None:
            return part.loss_sum, part.denominator, part.correct, part.rows
        if end - first <= 1:
            raise InternalError(f"no worker evaluated block {first} of {blocks}")
        middle = (first + end) // 2
        left, right = node(first, middle), node(middle, end)
        return left[0] + right[0], left[1] + right[1], left[2] + right[2], left[3] + right[3]

    loss_sum, denominator, correct, rows = node(0, blocks)
    loss = loss_sum / denominator if denominator else 0.0
    return Evaluation(loss, correct / rows if classes and rows else None)
