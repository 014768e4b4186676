"""The update of a step: penalties, the optimizer and running means, on one block of the flat vector after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np

from worker.nn.optimizers import build_optimizer
from worker.nn.parameters import Array, aligned_zeros
from worker.nn.penalties import add_penalties
from worker.nn.shapes import BLOCK_FLOATS, ParameterLayout
from worker.nn.shapes.shape import Role
from worker.specs import OptimizerRecord, PenaltyRecord


@final
class Update:
    """What happens with a mean gradient: L1 and L2 terms, which biases do not get, then the optimizer.

    State tensors, from `learned` on, become running means of what stands in the place of their gradient: w keep + g (1 - keep).
    `cuts` are where blocks of the flat vector must be cut; `state_names` are the optimizer's vectors.
    """

    def __init__(self, record: OptimizerRecord, penalty: PenaltyRecord, layout: ParameterLayout) -> None:
        self._optimizer = build_optimizer(record)
        self._penalty = penalty if penalty.l1 or penalty.l2 else None
        self._decayed = layout.decayed
        cuts = [layout.decayed] if self._penalty or self._optimizer.has_decay else []
        if layout.learned < layout.size:
            cuts.append(layout.learned)
        self.cuts: Sequence[int] = tuple(cuts)
        self.learned = layout.learned
        self._keep, self._take = aligned_zeros((2, layout.size - layout.learned), np.float32)
        for entry in layout.entries:
            if entry.role is Role.STATE:
                place = slice(entry.offset - layout.learned, entry.offset - layout.learned + entry.size)
                self._keep[place], self._take[place] = entry.tensor.keep, 1 - entry.tensor.keep
        self.state_names = self._optimizer.state_names
        self._scratch = aligned_zeros((min(layout.size, BLOCK_FLOATS) if self._penalty else 0,), np.float32)

    def apply(
        self, first: int, parameters: Array, gradient: Array, state: Sequence[Array], step: int, learning_rate: float
    ) -> None:
        """One step on the block that begins at `first`, at most BLOCK_FLOATS long; may overwrite the gradient."""
        if first >= self.learned:
            place = slice(first - self.learned, first - self.learned + len(parameters))
            np.multiply(parameters, self._keep[place], out=parameters)
            np.multiply(gradient, self._take[place], out=gradient)
            np.add(parameters, gradient, out=parameters)
            return
        decays = first < self._decayed
        if self._penalty is not None and decays:
            add_penalties(parameters, gradient, self._penalty.l1, self._penalty.l2, self._scratch[: len(parameters)])
        self._optimizer.apply(parameters, gradient, state, step, learning_rate, decays)
