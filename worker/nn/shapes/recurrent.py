"""Shapes of LSTM and GRU."""

from __future__ import annotations

from typing import Any

from worker.nn.shapes.shape import Rule

RULES: dict[type[Any], Rule] = {}
