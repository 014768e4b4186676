"""The update of a step: penalties, clipping, the optimizer and running means, block by block of the flat vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import DTypeLike

from worker.nn.norms import Norms
from worker.nn.optimizers import Lamb, build_optimizer
from worker.nn.parameters import Array, aligned_zeros
from worker.nn.penalties import add_penalties
from worker.nn.shapes import BLOCK_FLOATS, ParameterLayout, Role
from worker.specs import ClippingRecord, OptimizerRecord, PenaltyRecord


@final
class Update:
    """What happens with a mean gradient: L1 and L2 terms, which biases do not get, then clipping, then the optimizer.

    State tensors, from `learned` on, become running means of what stands in the place of their gradient: w keep + g (1 - keep).
    `cuts` are where blocks of the flat vector must be cut; `state_names` are the optimizer's vectors.

    Clipping by the global norm and LAMB's ratios need norms of the whole vector before a block can go on. Then an update is
    several passes over the blocks: each but the last measures into `norms`, and `begin` opens the next when all blocks are
    measured. Until the last pass the gradient is the update's own: what one pass leaves there the next one reads.
    """

    def __init__(
        self,
        record: OptimizerRecord,
        penalty: PenaltyRecord,
        layout: ParameterLayout,
        clipping: ClippingRecord | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        clipping = clipping or ClippingRecord()
        self._optimizer = build_optimizer(record, dtype)
        self._lamb = self._optimizer if isinstance(self._optimizer, Lamb) else None
        self._penalty = penalty if penalty.l1 or penalty.l2 else None
        self._decayed, self.learned = layout.decayed, layout.learned
        self._keep, self._take = aligned_zeros((2, layout.size - layout.learned), dtype)
        for entry in layout.entries:
            if entry.role is Role.STATE:
                place = slice(entry.offset - layout.learned, entry.offset - layout.learned + entry.size)
                self._keep[place], self._take[place] = entry.tensor.keep, 1 - entry.tensor.keep
        self._upper = np.array(clipping.value, dtype) if clipping.value else None
        self._lower = np.array(-clipping.value, dtype)
        self._bounds = self._penalty is not None or self._upper is not None
        self._max_norm, self._scale = clipping.global_norm, np.ones((), dtype)
        # The pass in which the optimizer has its turn: a global norm must be known before.
        self._turn = 1 if self._max_norm else 0
        rows = ((1,) if self._max_norm else ()) + ((2,) if self._lamb else ())
        self.norms = Norms(layout, rows) if rows else None
        weights = [entry for entry in layout.entries if entry.offset < layout.decayed]
        self._trusts = [1.0] * len(weights)
        cuts = {layout.decayed} if self._penalty or self._optimizer.has_decay else set()
        if layout.learned < layout.size:
            cuts.add(layout.learned)
        if self.norms:
            cuts.update(_run_starts(layout, alone=layout.decayed if self._lamb else 0))
        self.cuts: Sequence[int] = tuple(sorted(cuts))
        self.state_names = self._optimizer.state_names
        self._scratch = aligned_zeros((min(layout.size, BLOCK_FLOATS) if self._penalty else 0,), dtype)

    def begin(self, number: int) -> None:
        """Opens pass `number`, from 1 on: what the passes before have measured of all blocks is summed."""
        norms = self.norms
        assert norms is not None
        if number == self._turn:
            norm = math.sqrt(norms.total(0, 0))
            self._scale[...] = self._max_norm / norm if norm > self._max_norm else 1.0
            return
        for tensor in range(len(self._trusts)):
            weights, direction = (math.sqrt(norms.tensor_total(self._turn, row, tensor)) for row in (0, 1))
            self._trusts[tensor] = weights / direction if weights > 0 and direction > 0 else 1.0

    def apply(
        self,
        first: int,
        parameters: Array,
        gradient: Array,
        state: Sequence[Array],
        step: int,
        learning_rate: float,
        number: int = 0,
    ) -> None:
        """Pass `number` of a step on the block from `first` on, at most BLOCK_FLOATS long; may overwrite the gradient."""
        if first >= self.learned:
            if number == 0:
                self._average(first - self.learned, parameters, gradient)
            return
        decays = first < self._decayed
        if number == 0 and self._bounds:
            self._bound(parameters, gradient, decays)
        norms, lamb = self.norms, self._lamb
        if norms is None:
            self._optimizer.apply(parameters, gradient, state, step, learning_rate, decays)
        elif number < self._turn:
            norms.measure(number, 0, first, gradient)
        elif number == self._turn:
            if self._max_norm:
                np.multiply(gradient, self._scale, out=gradient)
            self._optimizer.apply(parameters, gradient, state, step, learning_rate, decays)
            if lamb and decays:
                norms.measure(number, 0, first, parameters)
                norms.measure(number, 1, first, gradient)
        elif lamb:
            trust = self._trusts[norms.tensor_at(first)] if decays else 1.0
            lamb.move(parameters, gradient, learning_rate * trust)

    def _average(self, at: int, running: Array, mean: Array) -> None:
        place = slice(at, at + len(running))
        np.multiply(running, self._keep[place], out=running)
        np.multiply(mean, self._take[place], out=mean)
        np.add(running, mean, out=running)

    def _bound(self, parameters: Array, gradient: Array, decays: bool) -> None:
        if self._penalty is not None and decays:
            add_penalties(parameters, gradient, self._penalty.l1, self._penalty.l2, self._scratch[: len(parameters)])
        if self._upper is not None:
            np.minimum(gradient, self._upper, out=gradient)
            np.maximum(gradient, self._lower, out=gradient)


def _run_starts(layout: ParameterLayout, alone: int) -> list[int]:
    """Where runs of tensors begin: small neighbours together, large tensors and those before `alone` each by itself.

    So no block ends within a block of a norm: a run is either one block, or a large tensor, whose blocks are whole multiples of
    NORM_BLOCK.
    """
    starts = [0]
    for entry in layout.entries:
        if entry.offset < layout.learned and (entry.offset < alone or entry.offset + entry.size - starts[-1] > BLOCK_FLOATS):
            starts.append(entry.offset)
    return starts
