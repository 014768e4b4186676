"""Fixtures of the data tests: uploads made by the test, read by the function or by the confined child process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.contract.errors import MORE, UserError, Violation
from lockstep.v1.dataset_service_pb2 import CsvFormat, NpzFormat, UploadHeader
from worker.data.ingest import ingest


class Reading:
    """Reads uploads into fresh folders under one temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = count()

    def upload(self, content: bytes | str) -> Path:
        """A file with this content."""
        path = self.folder / f"upload-{next(self._number)}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def csv(self, content: bytes | str, label: str = "label", **options: Any) -> tuple[dict[str, Any], Path]:
        """dataset.json of a table, and its folder."""
        header = UploadHeader(dataset_id="a", csv=CsvFormat(label=label, **options))
        return self._read(self.upload(content), header)

    def npz(self, content: bytes | Path, **names: str) -> tuple[dict[str, Any], Path]:
        """dataset.json of an archive, and its folder."""
        path = content if isinstance(content, Path) else self.upload(content)
        return self._read(path, UploadHeader(dataset_id="a", npz=NpzFormat(**names)))

    def arrays(self, **arrays: NDArray[Any]) -> tuple[dict[str, Any], Path]:
        """The same, of these arrays."""
        path = self.folder / f"arrays-{next(self._number)}.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return self.npz(path)

    def refused(self, read: Callable[[], object]) -> list[Violation]:
        """What was wrong with an upload."""
        with pytest.raises(UserError) as caught:
            read()
        for violation in caught.value.violations:
            assert (violation.place or violation.reason == MORE) and violation.remedy and violation.reason.isupper()
        return list(caught.value.violations)

    def child(self, upload: Path, header: str) -> dict[str, Any]:
        """The answer of the child process."""
        out = self.folder / f"out-{next(self._number)}"
        command = [sys.executable, "-m", "worker.data.ingest", "--upload", str(upload), "--out", str(out), "--header", header]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        lines = done.stdout.splitlines()
        assert len(lines) == 1
        answer = json.loads(lines[0])
        assert isinstance(answer, dict)
        return answer

    def _read(self, path: Path, header: UploadHeader) -> tuple[dict[str, Any], Path]:
        out = self.folder / f"out-{next(self._number)}"
        return ingest(path, out, header), out


@pytest.fixture
def reading(tmp_path: Path) -> Reading:
    return Reading(tmp_path)
