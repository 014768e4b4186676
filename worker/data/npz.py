"""Reads inputs and labels out of an .npz archive into columns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.contract.errors import UserError
from worker.data.dataset_writer import DatasetWriter, Target
from worker.data.findings import Faults, listed, quoted
from worker.data.inputs import ValueSurvey
from worker.data.labels import LabelCounts, NumberTargets, PositionLabels
from worker.data.limits import (
    MAX_INPUT_DIMENSIONS,
    MAX_INPUT_VALUES,
    MAX_LISTED_NAMES,
    MAX_ROWS,
    MAX_TARGET_VALUES,
)
from worker.data.npz_archive import Member, NpzArchive

# Every whole number up to here is a float32.
EXACT_IN_FLOAT32 = 1 << 24

AS_NUMBERS = "or store the array as floats if these are numbers to predict"


def read_npz(upload: Path, inputs: str, labels: str, writer: DatasetWriter) -> dict[str, Any]:
    """Turns the arrays `inputs` (N, ...) and `labels` (N,) or (N, W) into columns; gives the dataset's description.

    Whole-number dtypes are classes, for (N, W) with W above 1 one at each of W positions; real ones are numbers to predict.
    Raises UserError with all that is wrong.
    """
    archive = NpzArchive(upload)
    try:
        x, y = _members(archive, inputs, labels)
        faults = Faults()
        _check_shapes(x, y, faults)
        faults.raise_any()
        warnings = _write_inputs(archive, x, writer, faults)
        target, more = _write_labels(archive, y, writer, faults)
        faults.raise_any()
        others = [name for name in archive.names if name not in (inputs, labels)]
    finally:
        archive.close()
    warnings += more
    if others:
        names = listed([quoted(name) for name in others[:MAX_LISTED_NAMES]], len(others))
        warnings.append(f"other arrays of the file are not read: {names}")
    return writer.finish(x.shape[0], x.shape[1:], target, input_names=[], label_name="", warnings=warnings)


def _members(archive: NpzArchive, inputs: str, labels: str) -> tuple[Member, Member]:
    """Both arrays' headers; what is wrong with either is told together."""
    found, faults = [], Faults()
    for name in (inputs, labels):
        try:
            found.append(archive.member(name))
        except UserError as error:
            for violation in error.violations:
                faults.add(violation.place, violation.value, violation.remedy, violation.reason)
    faults.raise_any()
    return found[0], found[1]


def _check_shapes(x: Member, y: Member, faults: Faults) -> None:
    place_x, place_y = f"array {x.name}", f"array {y.name}"
    values = math.prod(x.shape[1:])
    if len(x.shape) < 2:
        remedy = "it must have rows and, in each, at least one number: shape (N, ...), as x.reshape(-1, 1) gives"
        faults.add(place_x, f"shape {x.shape}", remedy, "ARRAY_SHAPE")
    elif values == 0 or values > MAX_INPUT_VALUES or len(x.shape) - 1 > MAX_INPUT_DIMENSIONS:
        remedy = f"a row holds 1 to {MAX_INPUT_VALUES} numbers on at most {MAX_INPUT_DIMENSIONS} axes"
        faults.add(place_x, f"shape {x.shape}", remedy, "ARRAY_SHAPE")
    if len(y.shape) not in (1, 2) or math.prod(y.shape[1:]) == 0:
        remedy = "it must be (N,) for classes or numbers, or (N, W) for W numbers a row or a class at each of W positions"
        faults.add(place_y, f"shape {y.shape}", remedy, "ARRAY_SHAPE")
    elif math.prod(y.shape[1:]) > MAX_TARGET_VALUES:
        faults.add(
            place_y, f"shape {y.shape}", f"at most {MAX_TARGET_VALUES} numbers or labels a row are predicted", "ARRAY_SHAPE"
        )
    if not x.shape or not y.shape:
        return
    if x.shape[0] != y.shape[0]:
        remedy = f"{place_x} has {x.shape[0]} rows: both must have the same number"
        faults.add(place_y, f"{y.shape[0]} rows", remedy, "ROWS_DIFFER")
    elif x.shape[0] == 0:
        faults.add(place_x, "no rows", "a dataset needs rows", "NO_ROWS")
    elif x.shape[0] > MAX_ROWS:
        faults.add(place_x, f"{x.shape[0]} rows", f"at most {MAX_ROWS} rows are read", "TOO_LARGE")


def _write_inputs(archive: NpzArchive, x: Member, writer: DatasetWriter, faults: Faults) -> list[str]:
    columns = math.prod(x.shape[1:])
    survey, file, row, furthest = ValueSurvey(columns), writer.inputs(x.shape[1:]), 0, 0
    for block in archive.blocks(x, writer.scratch):
        if x.dtype.kind in "iu":
            furthest = max(furthest, int(block.max()), -int(block.min()))
        values = survey.cast(block.reshape(len(block), columns), row)
        file.append(values.reshape(len(block), *x.shape[1:]))
        row += len(block)

    def name(column: int) -> str:
        return ", ".join(str(int(index)) for index in np.unravel_index(column, x.shape[1:]))

    survey.report(faults, lambda column: f"array {x.name}, column {name(column)}")
    warnings = survey.warnings(row, lambda column: name(column) if len(x.shape) == 2 else f"({name(column)})")
    if furthest > EXACT_IN_FLOAT32:
        text = f"whole numbers up to {furthest} are kept as float32, which holds those up to {EXACT_IN_FLOAT32} exactly"
        warnings.append(f"array {x.name}: {text}")
    return warnings


def _write_labels(archive: NpzArchive, y: Member, writer: DatasetWriter, faults: Faults) -> tuple[Target, list[str]]:
    place = f"array {y.name}"
    width = math.prod(y.shape[1:])
    if y.dtype.kind in "biu" and width == 1:
        counts, file = LabelCounts(), writer.class_labels()
        for block in archive.blocks(y, writer.scratch):
            labels = block.reshape(-1)
            counts.look(labels)
            file.append(labels.astype(np.int64))
        return Target.of_classes(counts.class_rows(faults, place, AS_NUMBERS), []), []
    if y.dtype.kind in "biu":
        return _write_position_labels(archive, y, writer, faults)
    survey, targets = ValueSurvey(width), NumberTargets(width)
    numbers = writer.number_targets(width)
    row, clean = 0, True
    for block in archive.blocks(y, writer.scratch):
        values = survey.cast(block.reshape(len(block), width), row)
        clean = clean and bool(np.isfinite(values).all())
        if clean:
            targets.look(values)
        numbers.append(values)
        row += len(block)
    survey.report(faults, lambda column: f"{place}, column {column}" if width > 1 else place)
    if not clean:
        return Target.of_numbers(width), []
    targets.report(faults, place)
    return Target.of_numbers(width), targets.warnings(place)


def _write_position_labels(archive: NpzArchive, y: Member, writer: DatasetWriter, faults: Faults) -> tuple[Target, list[str]]:
    place, positions = f"array {y.name}", y.shape[1]
    labels, file, row = PositionLabels(), writer.class_labels(positions), 0
    for block in archive.blocks(y, writer.scratch):
        labels.look(block, row)
        file.append(block.astype(np.int64))
        row += len(block)
    by_class, no_label = labels.class_positions(faults, place, AS_NUMBERS)
    absent = by_class.count(0)
    warnings = [f"{place}: {absent} of the labels 0 to {len(by_class) - 1} stand at no position"] if absent else []
    return Target.of_classes(by_class, [], positions, no_label), warnings
