"""A side of a race that hangs is named, and ended."""

from __future__ import annotations

import sys

import pytest

from benchmarks import turns
from benchmarks.turns import Side

HANGS = ["-n", "1", "-r", "1", "import time; time.sleep(60)"]


def test_a_side_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "ANSWER_S", 0.1)
    with (
        pytest.raises(RuntimeError, match=r"timeit did not answer 'turn' within 0\.1 s"),
        Side(sys.executable, "timeit", HANGS) as side,
    ):
        side.ask("turn")


def test_a_side_that_does_not_end_is_named_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "END_S", 0.5)
    side = Side(sys.executable, "timeit", HANGS)
    with pytest.raises(RuntimeError, match="timeit did not end"), side:
        pass
    assert side._process.returncode == -9
