"""A table's header: the columns' names, and, where they cannot be right, the dialect that probably is."""

from __future__ import annotations

import difflib
import json
import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lockstep.contract.errors import UserError
from worker.data.csv_lines import Dialect, Record, text_lines
from worker.data.findings import Faults, listed, quoted
from worker.data.limits import MAX_LISTED_NAMES, MAX_NAME_CHARACTERS, MAX_NAMES_BYTES, MAX_PROBED_LINES, MAX_TABLE_COLUMNS

DELIMITERS = ",;\t|"
DECIMAL_COMMA = re.compile(r"(?<![\d.,])[+-]?\d+,\d+(?![\d.,])")


@final
@dataclass(frozen=True, slots=True)
class Header:
    """The columns' names in order, and which of them is the label's."""

    names: tuple[str, ...]
    label: int

    @property
    def input_names(self) -> list[str]:
        """The names without the label's."""
        return [name for index, name in enumerate(self.names) if index != self.label]


def read_header(record: Record | None, label: str, path: Path, dialect: Dialect) -> Header:
    """Reads names out of the first record. Raises UserError with what is wrong with them and what to state instead."""
    if record is None:
        raise UserError.of("file", "no line", "a table has a header line and rows", "NO_ROWS")
    names = [name.strip() for name in record.fields]
    _check_dialect(names, label, path, dialect, record.line)
    _check_names(names, record.line)
    if label not in names:
        raise _label_missing(names, label, record.line)
    if len(names) < 2:
        remedy = "there must be at least one column of inputs beside the label"
        raise UserError.of(f"header (line {record.line})", f"the column {quoted(label)} alone", remedy, "COLUMN_NAMES")
    return Header(tuple(names), names.index(label))


def _check_names(names: list[str], line: int) -> None:
    place, faults = f"header (line {line})", Faults()
    if len(names) > MAX_TABLE_COLUMNS:
        raise UserError.of(place, f"{len(names)} columns", f"at most {MAX_TABLE_COLUMNS} are read", "TOO_LARGE")
    if len(json.dumps(names)) > MAX_NAMES_BYTES:
        remedy = f"all names together take at most {MAX_NAMES_BYTES} bytes: make them shorter"
        raise UserError.of(place, f"{len(names)} long names", remedy, "TOO_LARGE")
    if all(_is_number(name) for name in names):
        remedy = "the first line must name the columns: put a line of names before it"
        raise UserError.of(place, f"numbers ({listed([quoted(name) for name in names])})", remedy, "COLUMN_NAMES")
    for index, name in enumerate(names):
        if not name:
            remedy = f"name each of the {len(names)} columns (an index without a name is better left out of the file)"
            faults.add(place, f"column {index + 1} without a name", remedy, "COLUMN_NAMES")
        elif len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            remedy = f"a name has at most {MAX_NAME_CHARACTERS} characters, all printable"
            faults.add(place, f"{quoted(name)} for column {index + 1}", remedy, "COLUMN_NAMES")
    positions: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        positions.setdefault(name, []).append(index + 1)
    for name, places in positions.items():
        if name and len(places) > 1:
            value = f"the name {quoted(name)} for columns {listed(places)}"
            faults.add(place, value, "give each column a name of its own", "COLUMN_NAMES")
    faults.raise_any()


def _is_number(name: str) -> bool:
    return bool(re.fullmatch(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", name, re.ASCII))


def _label_missing(names: list[str], label: str, line: int) -> UserError:
    folded = {name.casefold(): name for name in reversed(names)}
    close = difflib.get_close_matches(label.casefold(), list(folded), n=1)
    likely = folded[close[0]] if close else names[-1]
    shown = listed([quoted(name) for name in names[:MAX_LISTED_NAMES]], len(names))
    remedy = f"the table has no such column, but {shown}; {'is it' if close else 'the label may be'} {quoted(likely)}?"
    return UserError.of(f"label column (header in line {line})", quoted(label), remedy, "LABEL_COLUMN_MISSING")


def _check_dialect(names: list[str], label: str, path: Path, dialect: Dialect, line: int) -> None:
    """Refuses a header that only another dialect would read, and says which."""
    if label in names and len(names) > 1:
        return
    # A header of names that the stated delimiter parts well lacks the label for another reason, unless it stands lower down.
    for skipped, text in _first_lines(path):
        for delimiter in DELIMITERS:
            fields = [field.strip().strip('"') for field in text.split(delimiter)]
            if label not in fields or len(fields) < 2 or (delimiter, skipped) == (dialect.delimiter, dialect.skip_lines):
                continue
            raise _other_dialect(names, line, path, Dialect(delimiter, dialect.decimal, skipped))
    if len(names) == 1:
        counts = {delimiter: names[0].count(delimiter) for delimiter in DELIMITERS if delimiter != dialect.delimiter}
        likely = max(counts, key=lambda delimiter: counts[delimiter])
        if counts[likely]:
            raise _other_dialect(names, line, path, Dialect(likely, dialect.decimal, dialect.skip_lines))


def _other_dialect(names: list[str], line: int, path: Path, likely: Dialect) -> UserError:
    options = []
    rows = [text for skipped, text in _first_lines(path) if skipped > likely.skip_lines]
    delimiter = "TAB" if likely.delimiter == "\t" else likely.delimiter
    if len(names) == 1 or likely.delimiter != ",":
        options.append("--delimiter $'\\t'" if delimiter == "TAB" else f"--delimiter '{delimiter}'")
    cells = [cell.strip() for text in rows for cell in text.split(likely.delimiter)] if likely.delimiter != "," else []
    if any(DECIMAL_COMMA.fullmatch(cell) for cell in cells):
        options.append("--decimal ,")
    if likely.skip_lines:
        options.append(f"--skip-lines {likely.skip_lines}")
    value = f"one column, {quoted(names[0])}" if len(names) == 1 else f"the columns {listed([quoted(name) for name in names])}"
    remedy = f"the table is written in another dialect; state it: {' '.join(options)}"
    return UserError.of(f"header (line {line})", value, remedy, "CSV_DIALECT")


def _first_lines(path: Path) -> list[tuple[int, str]]:
    """The first lines, each with the number of lines before it."""
    found = []
    with closing(text_lines(path)) as lines:
        for skipped, text in enumerate(lines):
            if skipped >= MAX_PROBED_LINES:
                break
            found.append((skipped, text.rstrip("\r\n")))
    return found
