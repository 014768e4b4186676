"""Evaluation of the validation rows in fixed blocks of 256, a contiguous range of blocks per worker, sums along the tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from lockstep.contract.arithmetic import EVALUATION_BLOCK_ROWS
from lockstep.internal.v1.worker_pb2 import BlockSums, EvaluateReply
from worker.collective.tree import fold, owned_shards, subtrees
from worker.nn.model import Model
from worker.rows import Rows, RowSource


@final
@dataclass(frozen=True, slots=True)
class _Sums:
    loss_sum: float
    denominator: float
    correct: int
    rows: int

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(
            self.loss_sum + other.loss_sum,
            self.denominator + other.denominator,
            self.correct + other.correct,
            self.rows + other.rows,
        )


@final
class Evaluation:
    """One worker's part of an evaluation."""

    def __init__(self, model: Model, source: RowSource, validation_rows: Rows, rank: int, workers: int) -> None:
        self._model, self._source, self._rows = model, source, validation_rows
        self._blocks = -(-len(validation_rows) // EVALUATION_BLOCK_ROWS)
        self._owned = owned_shards(rank, workers, self._blocks)
        self._x, self._y = source.buffers(EVALUATION_BLOCK_ROWS)

    def run(self) -> EvaluateReply:
        """Sums over each of the largest subtrees inside this worker's range of blocks; none when there are fewer blocks."""
        reply = EvaluateReply()
        with np.errstate(all="ignore"):
            for first, end in subtrees(0, self._blocks, *self._owned):
                sums = fold(first, end, self._block, _Sums.plus)
                assert sums is not None
                reply.sums.append(
                    BlockSums(
                        first_block=first,
                        end_block=end,
                        loss_sum=sums.loss_sum,
                        denominator=sums.denominator,
                        correct=sums.correct,
                        rows=sums.rows,
                    )
                )
        return reply

    def _block(self, first: int, end: int) -> _Sums | None:
        if end - first > 1:
            return None
        rows = self._rows[first * EVALUATION_BLOCK_ROWS : end * EVALUATION_BLOCK_ROWS]
        x, y = self._x[: len(rows)], self._y[: len(rows)]
        self._source.gather(rows, x, y)
        return _Sums(*self._model.evaluate_block(x, y), len(rows))
