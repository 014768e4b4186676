"""The folders of datasets: DIR/files/datasets/DIGEST for versions, ID.tmp for uploads under way. Single writer: this server."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final, final

from lockstep.contract.errors import UserError
from services import limits

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@final
class DatasetFolders:
    """Where uploads become versions. Every path is built from checked ids and digests alone."""

    def __init__(self, files: Path) -> None:
        self._root = files / "datasets"
        self._root.mkdir(mode=0o755, parents=True, exist_ok=True)

    def begin(self, dataset_id: str, size_bytes: int, free_bytes: int = limits.DISK_FREE_BYTES) -> Path:
        """An empty folder for an upload, with room for it. Raises UserError when the disk has none."""
        free = shutil.disk_usage(self._root).free
        if size_bytes + free_bytes > free:
            remedy = (
                f"the disk has {free:,} bytes free, of which {free_bytes:,} stay free; remove datasets or jobs, or add space"
            )
            raise UserError.of("size_bytes", f"{size_bytes:,}", remedy, "DISK_FULL")
        folder = self._root / f"{dataset_id}.tmp"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        return folder

    def commit(self, out: Path, digest: str) -> int:
        """Puts a whole version under its digest, durably; gives its size.

        The same content may be there already, and in use: each of its files is replaced at once, in case it was damaged.
        """
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"not a digest: {digest!r}")
        target = self._root / digest
        out.chmod(0o755)
        size = sum(_make_durable(path) for path in sorted(out.iterdir()))
        _sync_folder(out)
        if target.exists():
            for path in out.iterdir():
                path.replace(target / path.name)
            _sync_folder(target)
        else:
            out.rename(target)
            _sync_folder(self._root)
        return size

    def discard(self, folder: Path) -> None:
        """Removes what is left of an upload."""
        shutil.rmtree(folder, ignore_errors=True)

    def remove(self, digest: str) -> None:
        """Removes a version's files; first from view, so that nobody sees half of it."""
        doomed = self._root / f"{digest}.tmp"
        try:
            (self._root / digest).rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def sweep(self, known: Collection[str]) -> list[str]:
        """After a restart: removes uploads that were under way, and versions that no dataset has. Gives their names."""
        swept = []
        for entry in self._root.iterdir():
            unknown = _DIGEST.fullmatch(entry.name) is not None and entry.name not in known
            if entry.name.endswith(".tmp") or unknown:
                shutil.rmtree(entry, ignore_errors=True)
                swept.append(entry.name)
        return swept


def _make_durable(path: Path) -> int:
    with path.open("rb") as file:
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
