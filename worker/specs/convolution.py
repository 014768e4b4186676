"""The records of convolutions and pooling."""

from __future__ import annotations

from worker.specs.records import LayerReader

READERS: dict[str, LayerReader] = {}
