"""The records of batch, layer and RMS normalization."""

from __future__ import annotations

from worker.specs.records import LayerReader

READERS: dict[str, LayerReader] = {}
