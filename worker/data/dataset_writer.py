"""The folder of a dataset version: x.npy, y.npy and dataset.json, durable; the ingest process alone writes them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np

from worker.data.column_file import ColumnFile

FORMAT = 1


@final
@dataclass(frozen=True, slots=True)
class Target:
    """What is predicted: classes, with the rows of each, or numbers of some width (class_rows is then None).

    With `positions` each row has as many labels, `class_rows` counts positions, and `no_label` stands where one has none.
    """

    class_rows: tuple[int, ...] | None
    class_names: tuple[str, ...] = ()
    width: int = 0
    positions: int | None = None
    no_label: int | None = None

    @classmethod
    def of_classes(
        cls, rows: Sequence[int], names: Sequence[str], positions: int | None = None, no_label: int | None = None
    ) -> Target:
        """Classes in the order of their labels; `names` is empty where labels were numbers."""
        return cls(tuple(rows), tuple(names), 0, positions, no_label)

    @classmethod
    def of_numbers(cls, width: int) -> Target:
        """So many numbers per row."""
        return cls(None, width=width)

    def to_json(self) -> dict[str, Any]:
        """The target as dataset.json has it."""
        if self.class_rows is None:
            return {"numbers": {"width": self.width}}
        classes = {"count": len(self.class_rows), "names": list(self.class_names), "rows": list(self.class_rows)}
        # Absent where a row has one label, so that such a dataset's digest does not depend on them.
        if self.positions is not None:
            classes["positions"] = self.positions
        if self.no_label is not None:
            classes["no_label"] = self.no_label
        return {"classes": classes}


def dataset_digest(document: dict[str, Any]) -> str:
    """SHA-256, in hex, of dataset.json as canonical JSON (sorted keys, no spaces, ASCII), what follows from it left out."""
    content = {key: value for key, value in document.items() if key not in ("digest", "warnings", "largest_index")}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@final
class DatasetWriter:
    """Opens the columns in a folder and finishes them together; leaving its `with` unfinished leaves files of no use."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._x: ColumnFile | None = None
        self._y: ColumnFile | None = None

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for column in (self._x, self._y):
            if column is not None:
                column.abandon()

    @property
    def scratch(self) -> Path:
        """A file that a reader may use for a while and removes."""
        return self._folder / "scratch"

    def inputs(self, row_shape: tuple[int, ...]) -> ColumnFile:
        """Opens the inputs' column."""
        self._x = ColumnFile(self._folder / "x.npy", np.float32, row_shape)
        return self._x

    def class_labels(self, positions: int | None = None) -> ColumnFile:
        """Opens the labels' column for classes (N,), or (N, positions)."""
        self._y = ColumnFile(self._folder / "y.npy", np.int64, () if positions is None else (positions,))
        return self._y

    def number_targets(self, width: int) -> ColumnFile:
        """Opens the labels' column for numbers (N, width)."""
        self._y = ColumnFile(self._folder / "y.npy", np.float32, (width,))
        return self._y

    def finish(
        self,
        rows: int,
        input_shape: tuple[int, ...],
        target: Target,
        input_names: Sequence[str],
        label_name: str,
        warnings: Sequence[str],
    ) -> dict[str, Any]:
        """Closes the columns, writes dataset.json, makes all of it durable, and gives the document."""
        if self._x is None or self._y is None:
            raise ValueError("a dataset has two columns")
        x, y = self._x.close(), self._y.close()
        if x.shape[0] != rows or y.shape[0] != rows:
            raise ValueError(f"columns of {x.shape[0]} and {y.shape[0]} rows in a dataset of {rows}")
        document: dict[str, Any] = {
            "format": FORMAT,
            "rows": rows,
            "input_shape": list(input_shape),
            "target": target.to_json(),
            "input_names": list(input_names),
            "label_name": label_name,
            "columns": {"x": x.to_json(), "y": y.to_json()},
        }
        document["digest"] = dataset_digest(document)
        document["warnings"] = list(warnings)
        document["largest_index"] = self._x.largest_index
        with open(self._folder / "dataset.json", "x", encoding="utf-8") as file:
            json.dump(document, file, indent=1, sort_keys=True, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return document
