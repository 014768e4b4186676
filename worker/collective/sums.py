"""Orders of additions along the tree, worked out once and then only carried out: of vectors, block by block, and of reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np

from worker.collective.shared_memory import F32, F64
from worker.collective.tree import Subtree, fold

# out = left + right
Addition = tuple[F32, F32, F32]


@final
class ScratchBlocks:
    """Scratch memory for sums, in blocks, shared by all sums of a worker: they are carried out one after the other."""

    def __init__(self, floats: int) -> None:
        self._floats = floats
        self._blocks: list[F32] = []

    def view(self, slot: int, floats: int) -> F32:
        """The first `floats` of block `slot`."""
        while len(self._blocks) <= slot:
            self._blocks.append(np.zeros(self._floats, np.float32))
        return self._blocks[slot][:floats]


@final
class VectorSum:
    """The additions that give the sum over `subtree` of equal-length vectors, `known` by subtree.

    `total` is where the sum then lies: a known vector where nothing is added, else `target` if given, or scratch. `free` is
    scratch that may be written once the total was read, element by element.
    """

    def __init__(
        self, subtree: Subtree, known: Mapping[Subtree, F32], scratch: ScratchBlocks, target: F32 | None = None
    ) -> None:
        floats = len(next(iter(known.values())))
        self.additions: list[Addition] = []
        idle: list[int] = []
        taken = 0

        def add(left: tuple[F32, int], right: tuple[F32, int]) -> tuple[F32, int]:
            nonlocal taken
            slots = [slot for slot in (left[1], right[1]) if slot >= 0]
            if not slots:
                if not idle:
                    idle.append(taken)
                    taken += 1
                slots = [idle.pop()]
            idle.extend(slots[1:])
            out = scratch.view(slots[0], floats)
            self.additions.append((left[0], right[0], out))
            return out, slots[0]

        def leaf(first: int, end: int) -> tuple[F32, int] | None:
            vector = known.get((first, end))
            return None if vector is None else (vector, -1)

        found = fold(*subtree, leaf, add)
        if found is None:
            raise ValueError(f"no vector lies in the subtree {subtree}")
        self.total, slot = found
        self.free = scratch.view(max(slot, 0), floats)
        if target is not None and self.additions:
            left, right, _ = self.additions[-1]
            self.additions[-1] = (left, right, target)
            self.total = target


@final
class ScalarSum:
    """Sums over `subtree` of pairs (loss sum, denominator) out of reports; `known` says where: (reporter, index)."""

    def __init__(self, subtree: Subtree, known: Mapping[Subtree, tuple[int, int]]) -> None:
        self._cells: list[tuple[int, int]] = []
        self._adds: list[tuple[int, int]] = []

        def leaf(first: int, end: int) -> int | None:
            place = known.get((first, end))
            if place is None:
                return None
            self._cells.append((place[0], 1 + 2 * place[1]))
            return len(self._cells) - 1

        def add(left: int, right: int) -> int:
            self._adds.append((left, right))
            return left

        found = fold(*subtree, leaf, add)
        if found is None:
            raise ValueError(f"no report lies in the subtree {subtree}")
        self._result = found

    def of(self, reports: Mapping[int, F64]) -> tuple[float, float]:
        """(loss sum, denominator), float64."""
        if not self._adds:
            reporter, at = self._cells[self._result]
            report = reports[reporter]
            return report.item(at), report.item(at + 1)
        losses = [float(reports[reporter][at]) for reporter, at in self._cells]
        denominators = [float(reports[reporter][at + 1]) for reporter, at in self._cells]
        for left, right in self._adds:
            losses[left] += losses[right]
            denominators[left] += denominators[right]
        return losses[self._result], denominators[self._result]
