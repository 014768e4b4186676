"""The store: jobs, runs, events, points, checkpoints, datasets in one database that this process alone writes."""

from __future__ import annotations

from services.store.store import Store

__all__ = ["Store"]
