"""What is wrong with a file: bounded lists of faults, with the first places and a count of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lockstep.contract.errors import UserError, Violation, more
from worker.data.limits import MAX_LISTED_NAMES, MAX_NAMED_ROWS, MAX_QUOTED_CHARACTERS, MAX_VIOLATIONS


def quoted(text: str) -> str:
    """The text as a sentence can show it: in quotes, escaped, cut short."""
    cut = text if len(text) <= MAX_QUOTED_CHARACTERS else text[:MAX_QUOTED_CHARACTERS] + "..."
    return repr(cut)


def listed(items: Sequence[object], total: int | None = None) -> str:
    """The first items, and how many there are when not all are named."""
    count = len(items) if total is None else total
    shown = [str(item) for item in items[:MAX_LISTED_NAMES]]
    rest = count - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


class Faults:
    """The faults of one file, at most MAX_VIOLATIONS of them."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.left_out = 0

    def add(self, place: str, value: object, remedy: str, reason: str) -> None:
        """Notes one fault."""
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(Violation(place, str(value), remedy, reason))
        else:
            self.left_out += 1

    def raise_any(self) -> None:
        """Raises UserError with all that was noted, if anything was."""
        if not self.violations:
            return
        raise UserError([*self.violations, *([more(self.left_out)] if self.left_out else [])])


class Occurrences:
    """How often each of a set of columns had a fault, in which rows first, and what stood there first.

    Only the first MAX_VIOLATIONS columns are remembered one by one; the others are counted.
    """

    def __init__(self, row_name: Callable[[int], str] = str) -> None:
        self._row_name = row_name
        self.columns: dict[int, tuple[list[str], str]] = {}
        self.counts: dict[int, int] = {}
        self.other_columns: set[int] = set()

    def note(self, column: int, row: int, value: object) -> None:
        """Notes one fault of a column."""
        self.note_rows(column, [row], 1, value)

    def note_rows(self, column: int, first_rows: Iterable[int], count: int, value: object) -> None:
        """Notes `count` faults of a column, of which `first_rows` are the first."""
        if column not in self.columns:
            if len(self.columns) >= MAX_VIOLATIONS:
                self.other_columns.add(column)
                return
            self.columns[column] = ([], str(value))
            self.counts[column] = 0
        rows, _ = self.columns[column]
        rows.extend(self._row_name(row) for row in list(first_rows)[: MAX_NAMED_ROWS - len(rows)])
        self.counts[column] += count

    def report(self, faults: Faults, place: Callable[[int], str], remedy: str, reason: str) -> None:
        """One fault per column: its place, the first value, the first rows, the count."""
        for column in sorted(self.columns):
            rows, value = self.columns[column]
            count = self.counts[column]
            where = f"{'rows' if count > 1 else 'row'} {', '.join(rows)}"
            total = f" ({count} in all)" if count > len(rows) else ""
            faults.add(f"{place(column)}", f"{value} in {where}{total}", remedy, reason)
        faults.left_out += len(self.other_columns)
