"""The API server: it owns the truth (the store) and the decisions; it never touches Ray or NumPy."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

VERSION: Final = version("lockstep-server")
