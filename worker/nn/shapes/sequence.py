"""Shapes of embedding, positions and attention."""

from __future__ import annotations

from typing import Any

from worker.nn.shapes.shape import Rule

RULES: dict[type[Any], Rule] = {}
