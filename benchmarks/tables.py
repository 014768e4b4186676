"""What is printed: Markdown tables on stdout, progress on stderr, medians with their quartiles."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence


def say(text: str) -> None:
    """Progress, for who waits."""
    print(text, file=sys.stderr, flush=True)


def row(cells: Iterable[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A whole one, with an empty line before it."""
    return "\n".join(["", row(heads), "|---" * len(heads) + "|", *map(row, rows)])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median in bold and the quartiles in brackets."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    return f"**{statistics.median(ordered):.{digits}f}** [{low:.{digits}f} {high:.{digits}f}]"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round."""
    return [own / other for own, other in zip(ours, theirs, strict=True)]


def below(checks: Iterable[tuple[str, float, float]]) -> list[str]:
    """What of (name, value, floor) is below its floor, in words; a value that is not a number is."""
    return [f"{name} {value:.2f} < {floor:g}" for name, value, floor in checks if not value >= floor]


def verdict(missed: Sequence[str]) -> str:
    """The last cell of a row."""
    return "below: " + "; ".join(missed) if missed else "holds"
