"""Whether a dataset is still what was uploaded: dataset.json against its folder's name, the columns against dataset.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from coordinator import limits
from lockstep.contract.errors import LockstepError
from worker.data.columns import DatasetUnreadable, open_columns
from worker.data.dataset_writer import dataset_digest
from worker.failpoints import failpoint

_PIECE_BYTES = 16 * limits.MIB


@final
class DatasetDamaged(LockstepError):
    """A dataset has changed since it was uploaded; the text says where, and what to do."""


def check_dataset(folder: Path, interrupted: Callable[[], bool]) -> None:
    """Reads all of `files/datasets/DIGEST`, about a second for each GB, unless it is interrupted.

    Raises DatasetDamaged where a bit is not what it was, DatasetUnreadable where files are missing.
    """
    failpoint("dataset.before_check", target=folder)
    try:
        columns = open_columns(folder)
        document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        if dataset_digest(document) != folder.name:
            raise _damaged(folder, "dataset.json has another digest than its folder's name")
    except DatasetUnreadable as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise _damaged(folder, str(error.__cause__ or error)) from error
    for name, values in (("x", columns.x), ("y", columns.y)):
        found, recorded = _sha256(values, interrupted), document["columns"][name]["sha256"]
        if found not in ("", recorded):
            raise _damaged(folder, f"the values of {name}.npy have SHA-256 {found}, not {recorded}")


def _sha256(values: NDArray[Any], interrupted: Callable[[], bool]) -> str:
    """Of the values in C order; empty when it was interrupted."""
    data, digest = values.reshape(-1).view(np.uint8).data, hashlib.sha256()
    for at in range(0, len(data), _PIECE_BYTES):
        if interrupted():
            return ""
        digest.update(data[at : at + _PIECE_BYTES])
    return digest.hexdigest()


def _damaged(folder: Path, what: str) -> DatasetDamaged:
    remedy = "upload the same file again, which mends it, and submit the job anew; then look for the fault of the disk"
    return DatasetDamaged(f"the dataset in {folder} is not what was uploaded: {what}; {remedy}")
