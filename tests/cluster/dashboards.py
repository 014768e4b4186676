"""Reads Grafana's dashboards: their panels, and every query as Prometheus would get it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent.parent / "deploy/grafana/dashboards"
Panel = dict[str, Any]


def dashboards() -> dict[str, Any]:
    """The dashboards by the name of their file."""
    return {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> Iterator[Panel]:
    """The panels that show something, those inside rows included."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def queries() -> Iterator[tuple[str, str]]:
    """Title and expression of every query, with All chosen for each variable."""
    for dashboard in dashboards().values():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield panel["title"], target["expr"].replace("$training_job", ".*")
