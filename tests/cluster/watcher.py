"""Follows a job as a user would: one Watch from the submission to the end, whatever dies in between."""

from __future__ import annotations

import threading

import lockstep
from lockstep.v1.training_job_pb2 import TrainingJob


class Watcher:
    """Collects in a thread what Watch says of a job: the loss of each reported step, each state, each event's number."""

    def __init__(self, client: lockstep.Client, name: str) -> None:
        self.losses: dict[int, float] = {}
        self.points: dict[tuple[int, str], float] = {}
        self.states: list[str] = []
        self.numbers: list[int] = []
        self.step = 0
        self.run_number = 0
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._follow, args=(client, name), daemon=True)
        self._thread.start()

    def _follow(self, client: lockstep.Client, name: str) -> None:
        try:
            for event in client.watch(name):
                if event.number:
                    self.numbers.append(event.number)
                self.run_number = max(self.run_number, event.run_number)
                if event.HasField("progress"):
                    self.step = event.progress.step
                    if event.progress.HasField("loss"):
                        self.losses[event.progress.step] = event.progress.loss
                elif event.HasField("state_change"):
                    self.states.append(TrainingJob.State.Name(event.state_change.state))
                elif event.HasField("points"):
                    for point in event.points.points:
                        key = (event.points.step, point.name)
                        assert self.points.setdefault(key, point.value) == point.value, f"two values at {key}"
        except BaseException as error:  # the test's own thread raises it
            self.error = error

    def join(self, within_s: float) -> None:
        """Waits for the end of the stream; raises what went wrong in it."""
        self._thread.join(within_s)
        if self.error is not None:
            raise self.error
        assert not self._thread.is_alive(), f"Watch has not ended within {within_s:g} s"
        assert self.numbers == sorted(set(self.numbers)), "events came twice or out of order"
