"""The records of LSTM and GRU."""

from __future__ import annotations

from worker.specs.records import LayerReader

READERS: dict[str, LayerReader] = {}
