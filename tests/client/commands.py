"""What the tests of the command line share: a command's outcome, and the events of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from lockstep.v1 import training_job_pb2
from tests.client.fake_server import State, WatchStep, state_event


class Done(NamedTuple):
    code: int
    out: str
    err: str

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Lockstep = Callable[..., Done]


def progress_event(number: int, **values: Any) -> training_job_pb2.JobEvent:
    event = training_job_pb2.JobEvent(number=number)
    progress = training_job_pb2.Progress(step=36, total_steps=240, epoch=3, samples_per_second=12345.6, workers=2, **values)
    event.progress.CopyFrom(progress)
    return event


def evaluation(number: int, loss: float, accuracy: float) -> training_job_pb2.JobEvent:
    event = training_job_pb2.JobEvent(number=number)
    event.points.step = 36
    event.points.points.add(name="loss", value=0.5)
    event.points.points.add(name="validation_loss", value=loss)
    event.points.points.add(name="validation_accuracy", value=accuracy)
    return event


def a_run(end: int, detail: str = "") -> list[WatchStep]:
    return [
        state_event(1, State.RUNNING),
        progress_event(2, loss=0.25, validation_accuracy=0.95, remaining_seconds=75),
        evaluation(3, math.nan, 0.9611),
        state_event(4, end, detail),
    ]
