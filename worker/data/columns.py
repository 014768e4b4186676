"""The columns of a dataset version, memory-mapped; workers and coordinators read them, nobody writes them any more."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lockstep.contract.errors import LockstepError


@final
class DatasetUnreadable(LockstepError):
    """A dataset version is not in the data folder of this node, or is not whole."""


@final
@dataclass(frozen=True, slots=True)
class Columns:
    """x (N, *input_shape) float32; y int64 classes (N,), or (N, L) at positions, or float32 numbers (N, W). Read-only."""

    x: NDArray[np.float32]
    y: NDArray[Any]

    @property
    def rows(self) -> int:
        """N."""
        return len(self.x)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row's input."""
        return self.x.shape[1:]


def open_columns(folder: Path) -> Columns:
    """The columns of `files/datasets/DIGEST`. Raises DatasetUnreadable with the file and what is wrong with it."""
    try:
        described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["columns"]
        columns = Columns(_open(folder / "x.npy", described["x"]), _open(folder / "y.npy", described["y"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DatasetUnreadable(
            f"the dataset in {folder} cannot be read ({error}); the node must see the data folder of the API server, and where "
            "a file is missing or damaged there too, uploading the same file again brings it back"
        ) from error
    if len(columns.x) != len(columns.y) or columns.x.dtype != np.float32:
        raise DatasetUnreadable(f"the dataset in {folder} has columns that do not belong together; push it again")
    return columns


def _open(path: Path, described: dict[str, Any]) -> NDArray[Any]:
    try:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if mapped.dtype.name != described["dtype"] or list(mapped.shape) != described["shape"] or not mapped.flags.c_contiguous:
        raise ValueError(f"{path.name} holds {mapped.dtype.name} {mapped.shape}, not what dataset.json says")
    return np.asarray(mapped)
