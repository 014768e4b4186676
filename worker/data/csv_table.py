"""Reads a table with a header line into columns: one pass over the numbers, one over the labels, by blocks of rows."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from lockstep.contract.errors import UserError
from worker.data.csv_header import Header, read_header
from worker.data.csv_labels import LabelKind, LabelSurvey, class_labels, number_targets
from worker.data.csv_lines import Dialect, Record, records
from worker.data.csv_numbers import Cell, cell_kind, fast_numbers, number, number_remedy
from worker.data.dataset_writer import DatasetWriter, Target
from worker.data.findings import Faults, Occurrences, quoted
from worker.data.inputs import FINITE, IN_RANGE, ValueSurvey
from worker.data.labels import NumberTargets
from worker.data.limits import BLOCK_VALUES, MAX_ROWS

FILL_IN = "every cell of an input column needs a number: fill it in, or drop the row or the column"


@final
@dataclass(frozen=True, slots=True)
class Block:
    """Whole rows: the cells of their inputs, row after row, their labels, and the number (from 1) of each row."""

    inputs: list[str]
    labels: list[str]
    rows: list[int]


def read_csv(upload: Path, label: str, dialect: Dialect, writer: DatasetWriter) -> dict[str, Any]:
    """Turns a table into columns and gives the dataset's description. Raises UserError with all that is wrong."""
    if dialect.delimiter == dialect.decimal:
        remedy = "fields and fractions need different characters: state another --delimiter or --decimal"
        raise UserError.of("csv", f"'{dialect.delimiter}' for both", remedy, "CSV_DIALECT")
    table = Table(upload, label, dialect)
    faults = Faults()
    row_names = RowNames()
    inputs, labels = InputCells(table.header, dialect, row_names), LabelSurvey(label, dialect, row_names)
    file, columns = writer.inputs((len(table.header.names) - 1,)), len(table.header.names) - 1
    rows = 0
    for block in table.blocks(faults, row_names):
        file.append(inputs.values(block, columns))
        labels.look(block.labels, block.rows)
        rows += len(block.rows)
    inputs.report(faults)
    kind = labels.kind(faults)
    if rows == 0 and not faults.violations:
        faults.add("file", "a header and no rows", "a dataset needs rows", "NO_ROWS")
    # What a column is as a whole is told of whole columns: not while rows were left out.
    faults.raise_any()
    class_rows = [] if kind in (None, LabelKind.NUMBERS) else labels.class_rows(LabelKind(kind), faults)
    faults.raise_any()
    warnings = inputs.survey.warnings(rows, lambda column: quoted(table.header.input_names[column]))
    if kind is LabelKind.NUMBERS:
        target, watch = Target.of_numbers(1), NumberTargets(1)
        column = writer.number_targets(1)
        for block in table.blocks(faults, row_names):
            column.append(number_targets(block.labels, dialect, watch))
        watch.report(faults, labels.place)
        faults.raise_any()
        warnings += watch.warnings(labels.place)
    else:
        names = labels.class_names() if kind is LabelKind.NAMES else []
        vocabulary = {name: index for index, name in enumerate(names)} if names else None
        target, column = Target.of_classes(class_rows, names), writer.class_labels()
        for block in table.blocks(faults, row_names):
            column.append(class_labels(block.labels, vocabulary))
    return writer.finish(rows, (columns,), target, table.header.input_names, label, warnings)


@final
class RowNames:
    """Names a row by its number and, once a quoted line break has parted the two, by its line as well.

    Remembers where the distance between row and line changes, so that its memory is that of the irregular rows it met.
    """

    MOST_CHANGES = 10_000

    def __init__(self) -> None:
        self._changes: list[tuple[int, int]] = []

    def note(self, row: int, line: int) -> None:
        """A row's line; rows come in ascending order."""
        distance = line - row
        last_row, last_distance = self._changes[-1] if self._changes else (0, 1)
        if distance != last_distance and row > last_row and len(self._changes) < self.MOST_CHANGES:
            self._changes.append((row, distance))

    def __call__(self, row: int) -> str:
        distance = 1
        for first, changed in self._changes:
            if first > row:
                break
            distance = changed
        known = len(self._changes) < self.MOST_CHANGES or row <= self._changes[-1][0]
        return f"{row} (line {row + distance})" if known else str(row)


@final
class Table:
    """A table as a header and blocks of rows."""

    def __init__(self, path: Path, label: str, dialect: Dialect) -> None:
        self._path, self._dialect = path, dialect
        with closing(records(path, dialect)) as found:
            self.header = read_header(next(found, None), label, path, dialect)

    def blocks(self, faults: Faults, row_names: RowNames) -> Iterator[Block]:
        """The rows in order; one with too few or too many fields is noted in `faults` and left out."""
        with closing(records(self._path, self._dialect)) as found:
            next(found)
            yield from self._blocks(found, faults, row_names)

    def _blocks(self, found: Generator[Record], faults: Faults, row_names: RowNames) -> Iterator[Block]:
        width, label = len(self.header.names), self.header.label
        block_rows = max(1, BLOCK_VALUES // width)
        block = Block([], [], [])
        for row, record in enumerate(found, start=1):
            row_names.note(row, record.line)
            fields = record.fields
            if len(fields) != width:
                remedy = f"the header names {width}: each row needs as many (a field with the delimiter in it is quoted)"
                faults.add(f"row {row_names(row)}", f"{len(fields)} fields", remedy, "RAGGED_ROW")
                continue
            if row > MAX_ROWS:
                raise UserError.of("file", f"more than {MAX_ROWS} rows", f"at most {MAX_ROWS} rows are read", "TOO_LARGE")
            block.labels.append(fields.pop(label))
            block.inputs.extend(fields)
            block.rows.append(row)
            if len(block.rows) == block_rows:
                yield block
                block = Block([], [], [])
        if block.rows:
            yield block


@final
class InputCells:
    """The input columns' cells as numbers, and the faults of those that are none."""

    def __init__(self, header: Header, dialect: Dialect, row_names: RowNames) -> None:
        self._names = header.input_names
        self._dialect = dialect
        self.survey = ValueSurvey(len(self._names), row_names)
        self._row_names = row_names
        self._text: dict[int, tuple[str, int, int]] = {}
        self._others = {kind: Occurrences(row_names) for kind in (Cell.MISSING, Cell.NOT_FINITE, Cell.OUT_OF_RANGE)}

    def values(self, block: Block, columns: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The block's inputs (R, columns) as float32; a cell that is no number becomes 0, which is never used."""
        numbers = fast_numbers(block.inputs, self._dialect)
        if numbers is None:
            numbers = np.zeros(len(block.inputs), np.float64)
            for index, cell in enumerate(block.inputs):
                numbers[index] = self._one_by_one(cell, index % columns, block.rows[index // columns])
        return self.survey.cast(numbers.reshape(-1, columns), block.rows[0])

    def report(self, faults: Faults) -> None:
        """Notes the faults, the first of each column and kind."""

        def place(column: int) -> str:
            return f"column {quoted(self._names[column])}"

        for column, (cell, row, count) in sorted(self._text.items()):
            others = f" (text in {count} rows in all)" if count > 1 else ""
            value = f"{quoted(cell)}{others}"
            remedy = number_remedy(cell, self._dialect)
            faults.add(f"{place(column)}, row {self._row_names(row)}", value, remedy, "NOT_A_NUMBER")
        self._others[Cell.MISSING].report(faults, place, FILL_IN, "EMPTY_CELLS")
        self._others[Cell.NOT_FINITE].report(faults, place, FINITE, "NOT_FINITE")
        self._others[Cell.OUT_OF_RANGE].report(faults, place, IN_RANGE, "OUT_OF_RANGE")

    def _one_by_one(self, cell: str, column: int, row: int) -> float:
        kind = cell_kind(cell, self._dialect)
        if kind is Cell.TEXT:
            first, first_row, count = self._text.get(column, (cell, row, 0))
            self._text[column] = (first, first_row, count + 1)
            return 0.0
        if kind in self._others:
            self._others[kind].note(column, row, cell.strip() or "an empty cell")
            return 0.0
        return number(cell, self._dialect)
