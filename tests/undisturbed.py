"""The hash of digits-long as one undisturbed worker computed it, by fingerprint: tests that take minutes share it."""

from __future__ import annotations

HASHES: dict[str, str] = {}
