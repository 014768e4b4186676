"""The update of a step: penalties and the optimizer, on one block of the flat vector after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np

from worker.nn.optimizers import build_optimizer
from worker.nn.parameters import Array, aligned_zeros
from worker.nn.penalties import add_penalties
from worker.nn.shapes import BLOCK_FLOATS, ParameterLayout
from worker.specs import OptimizerRecord, PenaltyRecord


@final
class Update:
    """What happens with a mean gradient: L1 and L2 terms, which biases do not get, then the optimizer.

    `cuts` are where blocks of the flat vector must be cut; `state_names` are the optimizer's vectors.
    """

    def __init__(self, record: OptimizerRecord, penalty: PenaltyRecord, layout: ParameterLayout) -> None:
        self._optimizer = build_optimizer(record)
        self._penalty = penalty if penalty.l1 or penalty.l2 else None
        self._decayed = layout.decayed
        self.cuts: Sequence[int] = (layout.decayed,) if self._penalty or self._optimizer.has_decay else ()
        self.state_names = self._optimizer.state_names
        self._scratch = aligned_zeros((min(layout.size, BLOCK_FLOATS) if self._penalty else 0,), np.float32)

    def apply(
        self, first: int, parameters: Array, gradient: Array, state: Sequence[Array], step: int, learning_rate: float
    ) -> None:
        """One step on the block that begins at `first`, at most BLOCK_FLOATS long; may overwrite the gradient."""
        decays = first < self._decayed
        if self._penalty is not None and decays:
            add_penalties(parameters, gradient, self._penalty.l1, self._penalty.l2, self._scratch[: len(parameters)])
        self._optimizer.apply(parameters, gradient, state, step, learning_rate, decays)
