"""The label column of a table: names of classes, whole-number classes, or numbers to predict."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from worker.data.csv_lines import Dialect
from worker.data.csv_numbers import Cell, cell_kind, number
from worker.data.findings import Faults, Occurrences, listed, quoted
from worker.data.inputs import FINITE, IN_RANGE
from worker.data.labels import TWO_CLASSES, LabelCounts, NumberTargets
from worker.data.limits import MAX_CLASSES, MAX_NAME_CHARACTERS, MAX_NAMES_BYTES

AS_NUMBERS = "or write a fraction (3.0) in at least one row if these are numbers to predict"
GIVE_LABEL = "every row needs a label: fill the cell in or drop the row"


class LabelKind(enum.Enum):
    """What a label column holds as a whole."""

    NAMES = "names of classes"
    CLASSES = "whole-number classes"
    NUMBERS = "numbers to predict"


@final
class LabelSurvey:
    """The first pass over the label column: what it holds, and what of it cannot be used."""

    def __init__(self, name: str, dialect: Dialect, row_name: Callable[[int], str]) -> None:
        self.place = f"label column {quoted(name)}"
        self._dialect = dialect
        self._row_name = row_name
        self._kinds: dict[str, Cell] = {}
        self._first: dict[Cell, tuple[int, str]] = {}
        self._rows: dict[str, int] = {}
        self._too_many_names = False
        self._whole = LabelCounts()
        self._unusable = {kind: Occurrences(row_name) for kind in (Cell.MISSING, Cell.NOT_FINITE, Cell.OUT_OF_RANGE)}
        self._names_refused: set[str] = set()

    def look(self, cells: Sequence[str], rows: Sequence[int]) -> None:
        """Takes a block of cells into account, with their rows (from 1)."""
        counts: dict[str, int] = {}
        for cell in cells:
            counts[cell] = counts.get(cell, 0) + 1
        kinds = {cell: cell_kind(cell, self._dialect) for cell in counts}
        for cell, count in counts.items():
            kind = kinds[cell]
            if kind is Cell.WHOLE:
                self._whole.add({int(cell.strip()): count})
            if kind is Cell.TEXT:
                self._count_name(cell.strip(), count)
        for kind in (Cell.WHOLE, Cell.NUMBER, Cell.TEXT):
            if kind not in self._first and kind in kinds.values():
                at = next(index for index, cell in enumerate(cells) if kinds[cell] is kind)
                self._first[kind] = (rows[at], cells[at])
        if any(kind in self._unusable for kind in kinds.values()):
            for row, cell in zip(rows, cells, strict=True):
                if (occurrences := self._unusable.get(kinds[cell])) is not None:
                    occurrences.note(0, row, cell.strip() or "an empty cell")

    def kind(self, faults: Faults) -> LabelKind | None:
        """What the column holds; None, and faults, where it cannot be used."""
        for cell, remedy, reason in (
            (Cell.MISSING, GIVE_LABEL, "EMPTY_CELLS"),
            (Cell.NOT_FINITE, FINITE, "NOT_FINITE"),
            (Cell.OUT_OF_RANGE, IN_RANGE, "OUT_OF_RANGE"),
        ):
            self._unusable[cell].report(faults, lambda _: self.place, remedy, reason)
        numbers = [self._first[kind] for kind in (Cell.WHOLE, Cell.NUMBER) if kind in self._first]
        if Cell.TEXT in self._first and numbers:
            row, text = self._first[Cell.TEXT]
            other, value = min(numbers)
            named = f"text ({quoted(text.strip())} in row {self._row_name(row)})"
            found = f"{named} among numbers ({value.strip()} in row {self._row_name(other)})"
            faults.add(self.place, found, "write either names of classes or numbers, in every row", "LABELS_MIXED")
            return None
        if Cell.TEXT in self._first:
            return LabelKind.NAMES if self._names_are_fine(faults) else None
        if Cell.NUMBER in self._first:
            return LabelKind.NUMBERS
        return LabelKind.CLASSES if Cell.WHOLE in self._first else None

    def class_names(self) -> list[str]:
        """The names of the classes in the order of their code points: the order of the labels."""
        return sorted(self._rows)

    def class_rows(self, kind: LabelKind, faults: Faults) -> list[int]:
        """Rows of each class in the order of the labels; notes in `faults` why there are no classes to tell apart."""
        if kind is LabelKind.NAMES:
            if len(self._rows) == 1:
                faults.add(self.place, f"{quoted(next(iter(self._rows)))} in every row", TWO_CLASSES, "ONE_CLASS")
            return [self._rows[name] for name in self.class_names()]
        return self._whole.class_rows(faults, self.place, AS_NUMBERS)

    def _count_name(self, name: str, count: int) -> None:
        if name not in self._rows and len(self._rows) > MAX_CLASSES:
            self._too_many_names = True
            return
        if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            self._names_refused.add(quoted(name))
        self._rows[name] = self._rows.get(name, 0) + count

    def _names_are_fine(self, faults: Faults) -> bool:
        if self._names_refused:
            value = f"the name {listed(sorted(self._names_refused))}"
            remedy = f"a class's name has at most {MAX_NAME_CHARACTERS} characters, all printable"
            faults.add(self.place, value, remedy, "CLASS_NAMES")
        if self._too_many_names or len(self._rows) > MAX_CLASSES:
            value = f"more than {MAX_CLASSES} different names"
            faults.add(self.place, value, "name another column as the label, or join classes", "TOO_MANY_CLASSES")
            return False
        if len(json.dumps(self.class_names())) > MAX_NAMES_BYTES:
            remedy = f"all names together take at most {MAX_NAMES_BYTES} bytes: make them shorter, or name another column"
            faults.add(self.place, f"{len(self._rows)} long names", remedy, "TOO_LARGE")
            return False
        return not self._names_refused


def class_labels(cells: Sequence[str], names: dict[str, int] | None) -> NDArray[np.int64]:
    """The cells as labels (R,): through the vocabulary, or, without one, as whole numbers."""
    if names is None:
        return np.fromiter((int(cell.strip()) for cell in cells), np.int64, len(cells))
    return np.fromiter((names[cell.strip()] for cell in cells), np.int64, len(cells))


def number_targets(cells: Sequence[str], dialect: Dialect, watch: NumberTargets) -> NDArray[np.float32]:
    """The cells as numbers to predict (R, 1)."""
    values = np.fromiter((number(cell, dialect) for cell in cells), np.float64, len(cells))
    targets = values.astype(np.float32).reshape(-1, 1)
    watch.look(targets)
    return targets
