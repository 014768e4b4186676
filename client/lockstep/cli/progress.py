"""What `watch` shows: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

from lockstep.cli.metric_words import HEADLINES, metric_words
from lockstep.cli.output import duration, number, percent, printable, result
from lockstep.v1 import training_job_pb2
from lockstep.watching import ENDED

if TYPE_CHECKING:
    from rich.console import Console

State = training_job_pb2.TrainingJob.State
Severity = training_job_pb2.Notice.Severity

# At most one line of progress in so many seconds, where there is no terminal.
LINE_INTERVAL_S = 1.0

# Spare columns for the bar beside its state and step.
NARROWEST_BAR = 10

Show = Callable[[training_job_pb2.JobEvent], None]


@contextmanager
def observer(name: str) -> Iterator[Show]:
    """A function that shows events one after another, fit for where stdout goes."""
    if sys.stdout.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown"):
        from rich.console import Console

        with LiveView(Console(highlight=False), name) as view:
            yield view.show
    else:
        yield PlainView().show


def progress_words(progress: training_job_pb2.Progress) -> str:
    """Where a run is, in one line; its step is said elsewhere."""
    words = [f"epoch {progress.epoch}"] if progress.epoch else []
    if progress.HasField("loss"):
        words.append(f"loss {number(progress.loss)}")
    if progress.HasField("validation_accuracy"):
        words.append(f"validation accuracy {percent(progress.validation_accuracy)}")
    elif progress.HasField("validation_loss"):
        words.append(f"validation loss {number(progress.validation_loss)}")
    if progress.samples_per_second:
        words.append(f"{progress.samples_per_second:,.0f} samples/s")
    if progress.workers:
        words.append(f"{progress.workers} worker{'s' if progress.workers > 1 else ''}")
    if progress.HasField("remaining_seconds"):
        words.append(f"{duration(progress.remaining_seconds)} left")
    return ", ".join(words)


def event_words(event: training_job_pb2.JobEvent) -> str:
    """One line for an event that people should see; nothing for progress, points of training and checkpoints."""
    kind = event.WhichOneof("event")
    if kind == "state_change":
        detail = f": {event.state_change.detail}" if event.state_change.detail else ""
        return f"{State.Name(event.state_change.state)}{detail}"
    if kind == "notice":
        return f"{Severity.Name(event.notice.severity).lower()}: {event.notice.text}"
    if kind == "points":
        values = {point.name: point.value for point in event.points.points}
        if "validation_loss" in values:
            accuracy = values.get("validation_accuracy")
            words = [f"validation loss {number(values['validation_loss'])}"]
            if accuracy is not None:
                words.append(f"validation accuracy {percent(accuracy)}")
            named = ((name, f"validation_{name}") for name in HEADLINES)
            words += [metric_words(name, values[point]) for name, point in named if point in values]
            return f"step {event.points.step:,}: {', '.join(words)}"
    return ""


@final
class Once:
    """Shows events, but not what the line about a job's end says again: the end itself, and the error that led to it."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._error: training_job_pb2.JobEvent | None = None  # held until the next state tells whether it is said there

    def show(self, event: training_job_pb2.JobEvent) -> None:
        """The next event."""
        if event.HasField("notice") and event.notice.severity == Severity.ERROR:
            self.close()
            self._error = event
            return
        if event.HasField("state_change"):
            end = event.state_change.state in ENDED
            if self._error is not None and end and self._error.notice.text in event.state_change.detail:
                self._error = None
            self.close()
            if end:
                return
        self._show(event)

    def close(self) -> None:
        """Shows what is held."""
        if self._error is not None:
            self._show(self._error)
            self._error = None


@final
class PlainView:
    """Lines: each change of state, notice and evaluation, and progress about once a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, say: Callable[[str], None] = result) -> None:
        self._clock, self._say = clock, say
        self._next_s = -LINE_INTERVAL_S

    def show(self, event: training_job_pb2.JobEvent) -> None:
        """Prints what is worth a line."""
        words = event_words(event)
        if event.HasField("progress") and self._clock() >= self._next_s:
            self._next_s = self._clock() + LINE_INTERVAL_S
            step = f"step {event.progress.step:,}/{event.progress.total_steps:,}"
            words = ", ".join(part for part in (step, progress_words(event.progress)) if part)
        if words:
            self._say(words)


@final
class LiveView:
    """A bar that moves, and above it each change of state, notice and evaluation."""

    def __init__(self, console: Console, name: str) -> None:
        from rich.live import Live
        from rich.progress_bar import ProgressBar

        self._console = console
        self._state = "waiting"
        self._progress = training_job_pb2.Progress()
        self._bar: ProgressBar = ProgressBar(total=1)
        self._live = Live(console=console, refresh_per_second=8, transient=True, get_renderable=self._render)
        self._console.print(name, markup=False)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, event: training_job_pb2.JobEvent) -> None:
        """Takes an event in; the bar is drawn a few times a second."""
        if event.HasField("progress"):
            self._progress.CopyFrom(event.progress)
        if event.HasField("state_change"):
            self._state = State.Name(event.state_change.state)
            self._progress.ClearField("remaining_seconds")  # of the state before
        if words := event_words(event):
            self._console.print(printable(words), markup=False)

    def _render(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        progress = self._progress
        step = f"{progress.step:,}/{progress.total_steps:,}"
        if not progress.total_steps:
            return Text(self._state)
        width = max(NARROWEST_BAR, self._console.width - len(self._state) - len(step) - 4)
        self._bar.width = width
        self._bar.update(completed=progress.step, total=progress.total_steps)
        line = Table.grid(padding=(0, 1))
        line.add_row(Text(self._state), self._bar, Text(step))
        return Group(line, Text(progress_words(progress), overflow="ellipsis", no_wrap=True))
