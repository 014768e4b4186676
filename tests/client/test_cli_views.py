"""What a terminal shows of a job, and what stands in a file instead."""

from __future__ import annotations

import io
import math
import sys

import pytest

from lockstep.cli.output import duration, number, percent, printable, size
from lockstep.cli.progress import LiveView, PlainView, event_words, observer
from tests.client.commands import evaluation, progress_event
from tests.client.fake_server import State, state_event


def test_the_live_view() -> None:
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, highlight=False, no_color=True)
    with LiveView(console, "jobs/a") as view:
        view.show(state_event(1, State.RUNNING, "[red]not markup[/red]"))
        view.show(progress_event(2, loss=math.nan, validation_accuracy=0.5, remaining_seconds=5))
    text = out.getvalue()
    for part in (
        "jobs/a",
        "RUNNING: [red]not markup[/red]",
        "36/240",
        "epoch 3, loss not a number, validation accuracy 50.00 %, 12,346 samples/s, 2 workers, 5 s left",
    ):
        assert part in text
    assert "\x1b[31m" not in text


def test_a_line_about_an_evaluation_has_its_headlines() -> None:
    event = evaluation(3, 0.5, 0.75)
    for name, value in (("f1", 0.1), ("auc", 0.98765), ("perplexity", 12.5)):
        event.points.points.add(name=f"validation_{name}", value=value)
    words = "step 36: validation loss 0.5, validation accuracy 75.00 %, ROC AUC 0.9877, perplexity 12.5"
    assert event_words(event) == words


@pytest.mark.parametrize(("term", "live"), [("dumb", False), ("xterm", True)])
def test_a_bar_only_on_a_terminal_that_can_show_it(monkeypatch: pytest.MonkeyPatch, term: str, live: bool) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stdout", Terminal())
    with observer("jobs/a") as show:
        kind = type(getattr(show, "__self__", None))
    assert kind is (LiveView if live else PlainView)


def test_plain_lines_come_once_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    view = PlainView(clock=lambda: now[0])
    for number_ in range(100):
        now[0] = number_ * 0.1
        view.show(progress_event(number_ + 1, loss=1.0))
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_words() -> None:
    assert [number(value) for value in (0.12345678, math.nan, math.inf, -math.inf)] == [
        "0.1235",
        "not a number",
        "infinite",
        "minus infinite",
    ]
    assert (percent(0.96114), percent(math.nan)) == ("96.11 %", "not a number")
    assert [size(count) for count in (0, 1023, 1024, 5 << 30)] == ["0 B", "1023 B", "1.0 KiB", "5.0 GiB"]
    assert [duration(seconds) for seconds in (0.4, 59.6, 3700, math.inf)] == ["0 s", "1 min 00 s", "1 h 01 min", "unknown"]
    assert printable("a\x1b]0;x\x07b\u202e") == "a\ufffd]0;x\ufffdb\ufffd"
