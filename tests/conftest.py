"""The order of the tests: pure ones first, then those with Ray, then those with Docker."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts what is quick to fail first; within a kind the order stays."""
    items.sort(key=lambda item: 2 if item.get_closest_marker("docker") else 1 if item.get_closest_marker("ray") else 0)
