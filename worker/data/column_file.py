"""A column on disk: one .npy file, written block by block and hashed as it grows."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from worker.data.limits import MAX_INDEX


@final
@dataclass(frozen=True, slots=True)
class ColumnRecord:
    """What a column file holds: its dtype, its shape (rows first), and SHA-256 of its values in C order, without the header."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """The record as dataset.json has it."""
        return {"dtype": self.dtype, "shape": list(self.shape), "sha256": self.sha256}


@final
class ColumnFile:
    """Writes blocks of rows (R, *row_shape) to a new .npy file; the rows are counted, not known beforehand."""

    def __init__(self, path: Path, dtype: type[np.float32] | type[np.int64], row_shape: tuple[int, ...]) -> None:
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._row_shape = row_shape
        self._rows = 0
        self._hash = hashlib.sha256()
        self._whole, self._largest = True, -1.0
        self._file = open(path, "xb")  # noqa: SIM115 (close and abandon close it)
        self._header_bytes = self._write_header()

    def append(self, block: NDArray[Any]) -> None:
        """Adds rows. Values are cast to the column's dtype; the caller has checked that they fit."""
        data = np.ascontiguousarray(block, self._dtype)
        if data.shape[1:] != self._row_shape:
            raise ValueError(f"a block of shape {data.shape} in a column of rows {self._row_shape}")
        self._hash.update(data.data)
        self._file.write(data.data)
        self._rows += len(data)
        if self._whole and data.size:
            self._whole = bool(data.min() >= 0 and (np.floor(data) == data).all())
            self._largest = max(self._largest, float(data.max()))

    @property
    def largest_index(self) -> int | None:
        """The largest value, if all are whole numbers from 0 to MAX_INDEX. All large float32 are whole, and mean no index."""
        return int(self._largest) if self._whole and self._rows and self._largest <= MAX_INDEX else None

    def close(self) -> ColumnRecord:
        """Puts the number of rows into the header, makes the file durable and says what it holds."""
        self._file.seek(0)
        if self._write_header() != self._header_bytes:
            raise ValueError("the header outgrew its place")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        expected = self._header_bytes + self._rows * math.prod(self._row_shape) * self._dtype.itemsize
        if os.path.getsize(self._file.name) != expected:
            raise OSError(f"{self._file.name} is not {expected} bytes long")
        return ColumnRecord(self._dtype.name, (self._rows, *self._row_shape), self._hash.hexdigest())

    def abandon(self) -> None:
        """Closes the file, finished or not."""
        self._file.close()

    def _write_header(self) -> int:
        """Writes magic and header at the file's place; NumPy leaves room in it for any number of rows."""
        shape = (self._rows, *self._row_shape)
        write_array_header_1_0(self._file, {"descr": self._dtype.str, "fortran_order": False, "shape": shape})
        return self._file.tell()
