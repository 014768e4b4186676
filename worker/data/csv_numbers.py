"""Numbers in a table's cells, read strictly: digits, one decimal mark, an exponent, and nothing else."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from worker.data.csv_lines import Dialect

POINT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
COMMA = re.compile(r"[+-]?(?:[0-9]+(?:,[0-9]*)?|,[0-9]+)(?:[eE][+-]?[0-9]+)?")
WHOLE = re.compile(r"[+-]?[0-9]{1,4000}")
# What cannot stand in a block of numbers; a cell is closed by a line feed in the joined text.
NOT_POINT = re.compile(r"[^0-9eE+\-. \n]")
NOT_COMMA = re.compile(r"[^0-9eE+\-, \n]")
MISSING_WORDS = frozenset({"", "na", "n/a", "null", "none"})
NOT_FINITE_WORDS = frozenset({"nan", "inf", "infinity"})


class Cell(enum.Enum):
    """What a cell holds."""

    WHOLE = "a whole number"
    NUMBER = "a number"
    NOT_FINITE = "not a finite number"
    OUT_OF_RANGE = "a number beyond float32"
    MISSING = "nothing"
    TEXT = "text"


def cell_kind(cell: str, dialect: Dialect) -> Cell:
    """What a cell holds, in the dialect's way of writing numbers."""
    text = cell.strip()
    if WHOLE.fullmatch(text):
        return Cell.WHOLE if in_range(float(text)) else Cell.OUT_OF_RANGE
    if (COMMA if dialect.decimal == "," else POINT).fullmatch(text):
        return Cell.NUMBER if in_range(float(text.replace(",", "."))) else Cell.OUT_OF_RANGE
    word = text.casefold()
    if word in MISSING_WORDS:
        return Cell.MISSING
    if word.lstrip("+-") in NOT_FINITE_WORDS:
        return Cell.NOT_FINITE
    return Cell.TEXT


def in_range(value: float) -> bool:
    """Whether float32 holds the value as a finite number (to its rounding)."""
    with np.errstate(over="ignore"):
        return math.isfinite(float(np.float32(value)))


def fast_numbers(cells: Sequence[str], dialect: Dialect) -> NDArray[np.float64] | None:
    """All cells as float64, or None where one of them is not plainly a finite number; cell_kind then says which."""
    text = "\n".join(cells)
    if (NOT_COMMA if dialect.decimal == "," else NOT_POINT).search(text) or text.count("\n") != len(cells) - 1:
        return None
    plain = text.replace(",", ".").split("\n") if dialect.decimal == "," else cells
    try:
        values = np.fromiter(map(float, plain), np.float64, len(cells))
    except ValueError:
        return None
    with np.errstate(over="ignore"):
        return values if bool(np.isfinite(values.astype(np.float32)).all()) else None


def number(cell: str, dialect: Dialect) -> float:
    """The cell's number. The caller has seen that it is one."""
    text = cell.strip()
    return float(text.replace(",", ".") if dialect.decimal == "," else text)


def number_remedy(cell: str, dialect: Dialect) -> str:
    """What to do about text where a number must stand."""
    text = cell.strip()
    other = COMMA if dialect.decimal == "." else POINT
    if other.fullmatch(text):
        mark = "," if dialect.decimal == "." else "."
        remedy = f"numbers are read with '{dialect.decimal}' before the fraction and without thousands separators"
        return f"{remedy}: state --decimal {mark} if that is the decimal mark, or remove it"
    if re.fullmatch(r"[+-]?[0-9]{1,3}([.,' ][0-9]{3})+([.,][0-9]+)?", text):
        return "thousands separators are not read: write 1204.5, not 1,204.5"
    return "this column holds numbers: write a number, remove the column, or name it as the label"
