"""The calls by which a process changes what is on disk, each of them replaced for a while."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CALLS = ("mkdir", "open", "posix_fallocate", "write", "fsync", "rename", "unlink", "rmdir")

Call = Callable[..., Any]


@contextmanager
def replaced(watched: Callable[[str, Call], Call]) -> Iterator[None]:
    """In this process `watched(name, function)` stands for each of the functions of `os`."""
    real = {name: getattr(os, name) for name in CALLS}
    try:
        for name, function in real.items():
            setattr(os, name, watched(name, function))
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)
