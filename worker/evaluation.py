"""Evaluation of the validation rows in fixed blocks of 256, a contiguous range of blocks per worker, sums along the tree."""

from __future__ import annotations

from typing import final

import numpy as np

from lockstep.contract.arithmetic import EVALUATION_BLOCK_ROWS
from lockstep.internal.v1.worker_pb2 import BlockSums, ClassCounts, EvaluateReply, ScoreCounts
from worker.collective.tree import fold, owned_shards, subtrees
from worker.nn.metrics import Counts, Sums
from worker.nn.model import Model
from worker.rows import Rows, RowSource


@final
class Evaluator:
    """One worker's part of evaluations."""

    def __init__(self, model: Model, source: RowSource, validation_rows: Rows, rank: int, workers: int) -> None:
        self._model, self._source, self._rows = model, source, validation_rows
        self._blocks = -(-len(validation_rows) // EVALUATION_BLOCK_ROWS)
        self._owned = owned_shards(rank, workers, self._blocks)
        self._x, self._y = source.buffers(EVALUATION_BLOCK_ROWS)
        self._counts = model.new_counts()

    def run(self) -> EvaluateReply:
        """Sums over each of the largest subtrees inside this worker's range of blocks, and counts over all of them.

        No sums when there are fewer blocks than workers and none is left for this one.
        """
        self._counts.clear()
        reply = EvaluateReply()
        with np.errstate(all="ignore"):
            for first, end in subtrees(0, self._blocks, *self._owned):
                sums = fold(first, end, self._block, Sums.plus)
                assert sums is not None
                reply.sums.append(sums_message(first, end, sums))
        if self._owned[0] < self._owned[1]:
            add_counts(reply, self._counts)
        return reply

    def _block(self, first: int, end: int) -> Sums | None:
        if end - first > 1:
            return None
        rows = self._rows[first * EVALUATION_BLOCK_ROWS : end * EVALUATION_BLOCK_ROWS]
        x, y = self._x[: len(rows)], self._y[: len(rows)]
        self._source.gather(rows, x, y)
        return self._model.evaluate_block(x, y, self._counts)


def sums_message(first: int, end: int, sums: Sums) -> BlockSums:
    """The sums over the blocks [first, end) as they are sent."""
    message = BlockSums(
        first_block=first,
        end_block=end,
        loss_sum=sums.loss_sum,
        denominator=sums.denominator,
        correct=sums.correct,
        rows=sums.rows,
        labels=sums.labels,
        top_5=sums.top_5,
        log_loss_sum=sums.log_loss_sum,
        numbers=sums.numbers,
        squared_error_sum=sums.squared_error_sum,
        absolute_error_sum=sums.absolute_error_sum,
    )
    if sums.moments is not None:
        message.means.extend(sums.moments.means.tolist())
        message.deviations.extend(sums.moments.deviations.tolist())
        message.errors.extend(sums.moments.errors.tolist())
    return message


def add_counts(reply: EvaluateReply, counts: Counts) -> None:
    """Adds the counts to a reply; of scores, the bins that hold any."""
    by_class = (counts.support.tolist(), counts.predicted.tolist(), counts.correct.tolist())
    reply.classes.CopyFrom(ClassCounts(support=by_class[0], predicted=by_class[1], correct=by_class[2]))
    bins = np.flatnonzero(counts.scores.any(axis=0))
    zeros, ones = counts.scores[:, bins].tolist()
    reply.scores.CopyFrom(ScoreCounts(bins=bins.tolist(), zeros=zeros, ones=ones))
