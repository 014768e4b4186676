"""The rules of inputs: every value finite in float32; columns that never change are worth a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from worker.data.findings import Faults, Occurrences, listed
from worker.data.limits import MAX_LISTED_NAMES, MAX_NAMED_ROWS

FINITE = "every value must be a finite number: replace or drop these rows"
IN_RANGE = "values are kept as float32 and must lie within 3.4e38: scale this column"


@final
class ValueSurvey:
    """Casts blocks of rows (R, D) to float32 and remembers, per column, what is not finite and what never changes."""

    def __init__(self, columns: int, row_name: Callable[[int], str] = str) -> None:
        self._lowest = np.full(columns, np.inf, np.float32)
        self._highest = np.full(columns, -np.inf, np.float32)
        self._not_finite = Occurrences(row_name)
        self._out_of_range = Occurrences(row_name)

    def cast(self, block: NDArray[Any], first_row: int) -> NDArray[np.float32]:
        """The block (R, D) as C-order float32."""
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.ascontiguousarray(block, np.float32)
        if not bool(np.isfinite(values).all()):
            self._look_closer(block, values, first_row)
        elif len(values):
            np.minimum(self._lowest, values.min(axis=0), out=self._lowest)
            np.maximum(self._highest, values.max(axis=0), out=self._highest)
        return values

    def report(self, faults: Faults, place: Callable[[int], str]) -> None:
        """Notes one fault per column that has any."""
        self._not_finite.report(faults, place, FINITE, "NOT_FINITE")
        self._out_of_range.report(faults, place, IN_RANGE, "OUT_OF_RANGE")

    def warnings(self, rows: int, name: Callable[[int], str]) -> list[str]:
        """A sentence on the columns that hold one value alone; nothing for a single row."""
        constant = np.flatnonzero(self._lowest == self._highest)
        if rows < 2 or not constant.size:
            return []
        names = listed([name(int(column)) for column in constant[:MAX_LISTED_NAMES]], constant.size)
        return [f"{constant.size} of {self._lowest.size} input columns never change and teach nothing: {names}"]

    def _look_closer(self, block: NDArray[Any], values: NDArray[np.float32], first_row: int) -> None:
        bad = ~np.isfinite(values)
        lost = bad & np.isfinite(block)
        for mask, occurrences in ((bad & ~lost, self._not_finite), (lost, self._out_of_range)):
            for column in np.flatnonzero(mask.any(axis=0)):
                rows = np.flatnonzero(mask[:, column])
                first = [first_row + int(row) for row in rows[:MAX_NAMED_ROWS]]
                occurrences.note_rows(int(column), first, rows.size, block[rows[0], column])
