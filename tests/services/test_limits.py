"""docs/limits.md and the limits' files say the same; the store's files keep their budget."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from services import limits

ROOT = Path(__file__).parents[2]
STORE_LINES = 250
UNITS = ("KIB", "MIB", "GIB")


@pytest.mark.parametrize("module", ["services.limits", "worker.data.limits", "worker.limits", "coordinator.limits"])
def test_every_limit_stands_in_the_docs_with_its_value(module: str) -> None:
    row = rf"^\| `{re.escape(module)}\.([A-Z0-9_]+)` \| ([^|]+?) \| ([^|]*?) \|"
    found = re.findall(row, (ROOT / "docs/limits.md").read_text(), re.MULTILINE)
    values = vars(importlib.import_module(module))
    numbers = {
        name: value for name, value in values.items() if name.isupper() and isinstance(value, int | float) and name not in UNITS
    }
    assert {name for name, _, _ in found} == set(numbers)
    for name, value, meaning in found:
        written = shown(name, numbers[name]) if module == "services.limits" else plain(numbers[name])
        assert value == written and meaning, name


def plain(value: float) -> str:
    """A limit of the engine's files: its unit is in its name or its words."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def shown(name: str, value: float) -> str:
    """A limit of the API server, with its unit."""
    if name.endswith("_BYTES"):
        sizes = (("GiB", limits.GIB), ("MiB", limits.MIB), ("KiB", limits.KIB))
        return next(f"{value // size:,} {unit}" for unit, size in sizes if value % size == 0)
    return f"{value:g} s" if name.endswith("_SECONDS") else f"{value:,}"


def test_the_stores_files_keep_their_budget() -> None:
    sizes = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "services/store").glob("*.py")}
    assert max(sizes.values()) <= STORE_LINES, sizes
