"""The order of the tests: those that are quick to fail first."""

from __future__ import annotations

import pytest

KINDS = ("faults", "ray", "docker")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts those without a mark first, then the kinds in order; within a kind the order stays."""
    items.sort(key=lambda item: max((at for at, kind in enumerate(KINDS, 1) if item.get_closest_marker(kind)), default=0))
