"""The records of embedding, positions and attention."""

from __future__ import annotations

from worker.specs.records import LayerReader

READERS: dict[str, LayerReader] = {}
