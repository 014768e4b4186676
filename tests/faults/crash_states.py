"""What a disk may hold when the power is cut in the midst of a program: the program's calls are recorded, and behind each of
them all states made that a file system may leave.

An fsync makes durable what it was called on, and nothing else: of a file its content, of a folder its names. Whatever was
done to a file or a folder since its last fsync may be lost from some point on; each for itself, in whatever order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias, final

from tests.faults.disk_calls import replaced

# What is found after a cut: a file's content, or a folder's entries.
Tree: TypeAlias = "bytes | tuple[tuple[str, Tree], ...]"


@final
class File:
    """Its content, from the last that is durable to the present one."""

    def __init__(self, content: bytes = b"") -> None:
        self.versions = [content]

    def write(self, data: bytes, at: int) -> None:
        """Half of it may come to the disk."""
        before = self.versions[-1]
        for part in (data[: len(data) // 2], data):
            self.versions.append(before[:at] + part + before[at + len(part) :])


@final
class Folder:
    """Its entries by name, from the last that are durable to the present ones."""

    def __init__(self, entries: Mapping[str, File | Folder]) -> None:
        self.versions = [dict(entries)]

    def change(self, **entries: File | Folder | None) -> None:
        """These names stand for these from now on, or are gone."""
        after = {**self.versions[-1], **entries}
        self.versions.append({name: node for name, node in after.items() if node is not None})


@final
class RecordedDisk:
    """The folder `root` and what a program does there. After each call `on_call` is given its name."""

    def __init__(self, root: Path, on_call: Callable[[str], None]) -> None:
        self._root, self._on_call = root, on_call
        self._top = _read(root)
        self._open: dict[int, tuple[File | Folder, int]] = {}  # by descriptor: what it is, and the place in it

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The calls of this process pass through here."""
        with replaced(self._watched):
            yield

    def present(self) -> Tree:
        """What is there if only the program dies."""
        return next(_trees(self._top, -1))

    def possible(self) -> set[Tree]:
        """What may be there if the power is cut."""
        return set(_trees(self._top, 0))

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            given = function(*arguments, **named)
            if getattr(self, f"_after_{name}")(given, *arguments, **named):
                self._on_call(name)
            return given

        return call

    def _find(self, path: Path | str, dir_fd: int | None = None) -> tuple[Folder, str] | None:
        """The folder in which a path lies, and its name there; None for one elsewhere."""
        if dir_fd is not None:
            there = self._open[dir_fd][0] if dir_fd in self._open else None
            return (there, str(path)) if isinstance(there, Folder) else None
        if not Path(path).is_relative_to(self._root):
            return None
        *parts, name = Path(path).relative_to(self._root.parent).parts
        folder = Folder({self._root.name: self._top})
        for part in parts:
            inner = folder.versions[-1][part]
            assert isinstance(inner, Folder)
            folder = inner
        return folder, name

    def _after_mkdir(self, given: None, path: Path, mode: int = 0o777, *, dir_fd: int | None = None) -> bool:
        return self._change(path, dir_fd, Folder({}))

    def _after_open(self, given: int, path: Path | str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> bool:
        self._open.pop(given, None)
        if (found := self._find(path, dir_fd)) is None:
            return False
        folder, name = found
        made = name not in folder.versions[-1]
        if made:
            folder.change(**{name: File()})
        self._open[given] = folder.versions[-1][name], 0
        return made

    def _after_posix_fallocate(self, given: None, fd: int, offset: int, size: int) -> bool:
        node, _ = self._open.get(fd, (None, 0))
        if not isinstance(node, File):
            return False
        node.versions.append(node.versions[-1].ljust(offset + size, b"\0"))
        return True

    def _after_write(self, given: int, fd: int, data: bytes | memoryview) -> bool:
        node, at = self._open.get(fd, (None, 0))
        if not isinstance(node, File):
            return False
        node.write(bytes(data[:given]), at)
        self._open[fd] = node, at + given
        return True

    def _after_fsync(self, given: None, fd: int) -> bool:
        if fd not in self._open:
            return False
        node, _ = self._open[fd]
        del node.versions[:-1]
        return True

    def _after_rename(self, given: None, old: Path, new: Path) -> bool:
        if (found := self._find(old)) is None:
            return False
        folder, name = found
        assert Path(old).parent == Path(new).parent, "between folders it takes the fsync of both"
        folder.change(**{name: None, Path(new).name: folder.versions[-1][name]})
        return True

    def _after_unlink(self, given: None, path: Path | str, *, dir_fd: int | None = None) -> bool:
        return self._change(path, dir_fd, None)

    def _after_rmdir(self, given: None, path: Path | str, *, dir_fd: int | None = None) -> bool:
        return self._change(path, dir_fd, None)

    def _change(self, path: Path | str, dir_fd: int | None, node: Folder | None) -> bool:
        if (found := self._find(path, dir_fd)) is None:
            return False
        found[0].change(**{found[1]: node})
        return True


def restore(tree: Tree, path: Path) -> None:
    """Writes what was found after a cut to `path`, which must not exist."""
    if isinstance(tree, bytes):
        path.write_bytes(tree)
        return
    path.mkdir()
    for name, inner in tree:
        restore(inner, path / name)


def _read(path: Path) -> Folder:
    return Folder({entry.name: _read(entry) if entry.is_dir() else File(entry.read_bytes()) for entry in path.iterdir()})


def _trees(node: File | Folder, first: int) -> Iterator[Tree]:
    if isinstance(node, File):
        yield from node.versions[first:]
        return
    for version in node.versions[first:]:
        for inner in product(*(tuple(_trees(child, first)) for child in version.values())):
            yield tuple(sorted(zip(version, inner, strict=True)))
