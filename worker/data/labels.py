"""The rules of labels: whole numbers from 0 are classes, at least two; those of rows are all present."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from worker.data.findings import Faults, Occurrences, listed
from worker.data.limits import MAX_CLASSES, MAX_NAMED_ROWS

START_AT_0 = "labels start at 0"
TWO_CLASSES = "one class alone teaches nothing: give rows of at least two classes"

# What may stand where a position of a row has no label.
NO_LABEL = (-1, -100)


@final
class LabelCounts:
    """Counts the rows of each whole-number label, with a bound on how many labels are remembered."""

    def __init__(self) -> None:
        self.rows: dict[int, int] = {}
        self.lowest: int | None = None
        self.highest: int | None = None
        self.overflowed = False

    def look(self, labels: NDArray[Any]) -> None:
        """Takes a block of labels (R,) of an integer dtype into account."""
        if not labels.size:
            return
        values, counts = np.unique(labels, return_counts=True)
        self.add(dict(zip((int(value) for value in values), (int(count) for count in counts), strict=True)))

    def add(self, counts: Mapping[int, int]) -> None:
        """Takes rows per label into account."""
        for value, count in counts.items():
            self.lowest = value if self.lowest is None else min(self.lowest, value)
            self.highest = value if self.highest is None else max(self.highest, value)
            if value in self.rows or len(self.rows) <= MAX_CLASSES:
                self.rows[value] = self.rows.get(value, 0) + count
            else:
                self.overflowed = True

    def class_rows(self, faults: Faults, place: str, numbers_remedy: str) -> list[int]:
        """Rows of each class in the order of the labels; notes in `faults` why the labels are no classes.

        `numbers_remedy` says how the same column is given as numbers to predict.
        """
        found = sorted(self.rows)
        if self.lowest is None or self.highest is None:
            return []
        values = f"{listed(found, None)}" if len(found) <= 12 and not self.overflowed else f"{self.lowest} to {self.highest}"
        if self.lowest < 0:
            remedy = f"{START_AT_0}: number the classes 0, 1, 2, ..., {numbers_remedy}"
            faults.add(place, f"labels {values}", remedy, "LABELS_NEGATIVE")
        elif self.overflowed or len(found) > MAX_CLASSES:
            remedy = f"at most {MAX_CLASSES} classes are possible, {numbers_remedy}"
            faults.add(place, f"more than {MAX_CLASSES} labels, {self.lowest} to {self.highest}", remedy, "TOO_MANY_CLASSES")
        elif len(found) == 1:
            faults.add(place, f"the label {found[0]} in every row", TWO_CLASSES, "ONE_CLASS")
        elif self.lowest > 0:
            remedy = f"{START_AT_0}: subtract {self.lowest}, or number the classes 0, 1, 2, ..., {numbers_remedy}"
            faults.add(place, f"labels {values}", remedy, "LABELS_GAP")
        elif self.highest != len(found) - 1:
            missing = [label for label in range(min(self.highest, 2 * MAX_CLASSES)) if label not in self.rows]
            total = self.highest + 1 - len(found)
            gap = f"no row has {listed(missing[:3], total)}"
            remedy = f"{START_AT_0} and leave no gap ({gap}): number the classes 0, 1, 2, ..., {numbers_remedy}"
            faults.add(place, f"labels {values}", remedy, "LABELS_GAP")
        else:
            return [self.rows[label] for label in found]
        return []


@final
class PositionLabels:
    """Watches labels at positions (R, L): whole numbers from 0, or one of -1 and -100 where there is no label.

    Unlike classes of rows they may leave gaps: not every word of a vocabulary need occur.
    """

    def __init__(self) -> None:
        self._counts = LabelCounts()
        self._negative = Occurrences()

    def look(self, block: NDArray[Any], first_row: int) -> None:
        """Takes a block of labels (R, L) of an integer dtype into account."""
        self._counts.look(block)
        # A block of an unsigned dtype has none.
        wrong = (block < 0) & ~np.isin(block, NO_LABEL)
        for position in np.flatnonzero(wrong.any(axis=0)):
            rows = np.flatnonzero(wrong[:, position])
            named = [first_row + int(row) for row in rows[:MAX_NAMED_ROWS]]
            self._negative.note_rows(int(position), named, rows.size, block[rows[0], position])

    def class_positions(self, faults: Faults, place: str, numbers_remedy: str) -> tuple[list[int], int | None]:
        """(positions of each class in the order of the labels, what stands for no label or None).

        Notes in `faults` why the labels cannot be used.
        """
        none = [value for value in NO_LABEL if value in self._counts.rows]
        found = sorted(label for label in self._counts.rows if label >= 0)
        highest = self._counts.highest
        if self._negative.columns:
            remedy = f"{START_AT_0}; -1 or -100 stands where a position has none, {numbers_remedy}"
            self._negative.report(faults, lambda position: f"{place}, position {position}", remedy, "LABELS_NEGATIVE")
        elif len(none) > 1:
            remedy = "mark the positions that have no label with one of the two, in all rows"
            faults.add(place, "-1 and -100 among the labels", remedy, "LABELS_MIXED")
        elif highest is not None and highest >= MAX_CLASSES:
            remedy = f"labels lie from 0 to {MAX_CLASSES - 1}, {numbers_remedy}"
            faults.add(place, f"the label {highest}", remedy, "TOO_MANY_CLASSES")
        elif not found:
            remedy = "nothing can be learned from positions without labels: give some of them labels"
            faults.add(place, f"{none[0]} at every position" if none else "no labels", remedy, "NO_LABELS")
        elif len(found) == 1:
            faults.add(place, f"the label {found[0]} at every position", TWO_CLASSES, "ONE_CLASS")
        else:
            rows = self._counts.rows
            return [rows.get(label, 0) for label in range(found[-1] + 1)], none[0] if none else None
        return [], None


@final
class NumberTargets:
    """Watches numbers to predict (R, W): whether they differ between rows, whether all are whole."""

    def __init__(self, width: int) -> None:
        self._lowest = np.full(width, np.inf, np.float32)
        self._highest = np.full(width, -np.inf, np.float32)
        self.whole = True

    def look(self, block: NDArray[np.float32]) -> None:
        """Takes a block of finite targets (R, W) into account."""
        if not len(block):
            return
        np.minimum(self._lowest, block.min(axis=0), out=self._lowest)
        np.maximum(self._highest, block.max(axis=0), out=self._highest)
        self.whole = self.whole and bool((block == np.floor(block)).all())

    def report(self, faults: Faults, place: str) -> None:
        """Notes a target that is the same in every row."""
        if bool((self._lowest == self._highest).all()):
            remedy = "a target that never changes teaches nothing: give rows that differ"
            faults.add(place, f"{float(self._lowest[0]):g} in every row", remedy, "CONSTANT_LABEL")

    def warnings(self, place: str) -> list[str]:
        """What deserves a word though it can be used."""
        if self.whole and self._lowest.size == 1 and self._lowest[0] >= 0 and self._highest[0] < MAX_CLASSES:
            values = f"whole numbers ({self._lowest[0]:g} to {self._highest[0]:g})"
            return [f"{place}: {values} written as real ones are numbers to predict; write integers if they are classes"]
        return []
