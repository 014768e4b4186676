"""An evaluation's result: the workers' sums over blocks of 256 rows, combined along the tree, and their counts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from lockstep.contract.arithmetic import EVALUATION_BLOCK_ROWS
from lockstep.contract.errors import InternalError
from lockstep.internal.v1 import worker_pb2
from worker.collective.tree import fold
from worker.nn.metrics import Moments, Sums, metric_values


@final
@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean loss over the validation rows, and what else was found: metrics by name, those of them that have a value.

    `accuracy` is the part of the labels that are the first largest output (classes only); it does not stand among the metrics.
    `classes` are the lists "support", "predicted" and "correct", a count per class; empty where numbers are predicted.
    """

    loss: float
    accuracy: float | None
    metrics: dict[str, float] = field(default_factory=dict)
    classes: dict[str, list[int]] = field(default_factory=dict)

    def points(self) -> list[tuple[str, float]]:
        """Its points on the job's curves."""
        values = [("validation_loss", self.loss)]
        if self.accuracy is not None:
            values.append(("validation_accuracy", self.accuracy))
        return values + [(f"validation_{name}", value) for name, value in self.metrics.items()]


def combine(replies: Sequence[worker_pb2.EvaluateReply], validation_rows: int, positions: bool) -> Evaluation:
    """node(a, b) = node(a, m) + node(m, b), m = (a + b) // 2, in float64. Raises InternalError when a block is missing.

    `positions` says that rows have a label at each of several positions.
    """
    blocks = -(-validation_rows // EVALUATION_BLOCK_ROWS)
    given = {(part.first_block, part.end_block): part for reply in replies for part in reply.sums}

    def node(first: int, end: int) -> Sums | None:
        part = given.get((first, end))
        if part is not None:
            return _sums(part)
        if end - first <= 1:
            raise InternalError(f"no worker evaluated block {first} of {blocks}")
        return None

    with np.errstate(all="ignore"):  # where the model's numbers are not finite, nor are their sums
        sums = fold(0, blocks, node, Sums.plus)
    assert sums is not None
    classes = {
        "support": _added(reply.classes.support for reply in replies),
        "predicted": _added(reply.classes.predicted for reply in replies),
        "correct": _added(reply.classes.correct for reply in replies),
    }
    scores: dict[int, tuple[int, int]] = {}
    for reply in replies:
        for score, zeros, ones in zip(reply.scores.bins, reply.scores.zeros, reply.scores.ones, strict=True):
            before = scores.get(score, (0, 0))
            scores[score] = (before[0] + zeros, before[1] + ones)
    metrics = metric_values(sums, classes["support"], classes["predicted"], classes["correct"], scores, positions)
    loss = sums.loss_sum / sums.denominator if sums.denominator else 0.0
    return Evaluation(loss, metrics.pop("accuracy", None), metrics, classes if classes["support"] else {})


def _sums(part: worker_pb2.BlockSums) -> Sums:
    moments = None
    if part.means:
        moments = Moments(part.rows, np.array(part.means), np.array(part.deviations), np.array(part.errors))
    return Sums(
        rows=part.rows,
        loss_sum=part.loss_sum,
        denominator=part.denominator,
        labels=part.labels,
        correct=part.correct,
        top_5=part.top_5,
        log_loss_sum=part.log_loss_sum,
        numbers=part.numbers,
        squared_error_sum=part.squared_error_sum,
        absolute_error_sum=part.absolute_error_sum,
        moments=moments,
    )


def _added(counts: Iterable[Sequence[int]]) -> list[int]:
    """The workers' counts, added class by class; one without blocks has none."""
    given = [list(one) for one in counts if one]
    return [sum(of_class) for of_class in zip(*given, strict=True)]
