"""A planted defect: lines of the source that are replaced where a process loads them, and nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import final

ROOT = Path(__file__).parent.parent.parent

# The variable that names the defect of a process, which reads it as it starts (start/sitecustomize.py).
VARIABLE = "LOCKSTEP_TEST_DEFECT"


@final
@dataclass(frozen=True, slots=True)
class Change:
    """In a file, by its path from the root, `old` stands once, and gives way to `new`."""

    file: str
    old: str
    new: str

    @property
    def module(self) -> str:
        """The name under which the file is imported."""
        return self.file.removesuffix(".py").replace("/", ".")

    def made(self, source: str) -> str:
        """The source with the change. Raises ValueError where `old` does not stand in it once: the defect is out of date."""
        if source.count(self.old) != 1:
            raise ValueError(f"{self.file} has this {source.count(self.old)} times and not once: {self.old!r}")
        return source.replace(self.old, self.new)


@final
@dataclass(frozen=True, slots=True)
class Defect:
    """What is wrong, in a sentence; how it is done; what catches it, for people; and a word that must then be said."""

    name: str
    sentence: str
    changes: Sequence[Change]
    caught_by: str
    word: str


def plant(changes: Sequence[Change]) -> None:
    """From now on this process loads the files with these changes. Raises RuntimeError where it has loaded one already."""
    loaded = [change.module for change in changes if change.module in sys.modules]
    if loaded:
        raise RuntimeError(f"too late: {loaded} are loaded")
    sys.meta_path.insert(0, _Finder(changes))


def environment(defect: Defect) -> Mapping[str, str]:
    """The variables with which a process has the defect, and whatever it starts."""
    path = [str(Path(__file__).parent / "start"), str(ROOT), str(ROOT / "client"), os.environ.get("PYTHONPATH", "")]
    return {VARIABLE: defect.name, "PYTHONPATH": os.pathsep.join(filter(None, path))}


@final
class _Finder(MetaPathFinder):
    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = changes

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        changes = [change for change in self._changes if change.module == fullname]
        spec = PathFinder.find_spec(fullname, path, target) if changes else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, changes)
        return spec


@final
class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, changes: Sequence[Change]) -> None:
        super().__init__(fullname, path)
        self._changes = changes

    def get_code(self, fullname: str) -> CodeType:  # past the cache of compiled files
        source = Path(self.path).read_text()
        for change in self._changes:
            source = change.made(source)
        return self.source_to_code(source, self.path)
