"""The events of a job as one iterator, however often the stream breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from lockstep.connection import Connection, is_away
from lockstep.failures import ServerUnavailable, WaitTimeout
from lockstep.v1 import training_job_pb2, training_job_service_pb2, training_job_service_pb2_grpc

State = training_job_pb2.TrainingJob.State

ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

# The server beats every 15 s; a stream that is silent for longer than this is dead.
SILENCE_S = 50.0

# How long a stream may stay open after the job's end was seen.
FAREWELL_S = 5.0

# How long the server may be away before watching gives up, and the pauses between tries.
AWAY_S = 300.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0


def watch(
    connection: Connection,
    name: str,
    after_number: int = 0,
    timeout_s: float | None = None,
    away_s: float = AWAY_S,
    on_away: Callable[[float], None] = lambda seconds: None,
) -> Iterator[training_job_pb2.JobEvent]:
    """The events of a job after a number, each once and in order, until the job has ended; beats are left out.

    A broken stream is opened again after the last number; `on_away` is called once per absence of the server, with the
    seconds for which it is awaited. Raises UserError (no such job), ServerUnavailable when the server
    stays away for `away_s`, WaitTimeout after `timeout_s`.
    """
    stub = training_job_service_pb2_grpc.TrainingJobServiceStub(connection.channel)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ended, last, away_since, pause_s = False, after_number, None, FIRST_PAUSE_S
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise WaitTimeout(name, f"it has not ended within {timeout_s:g} s")
        broken: grpc.RpcError | None = None
        request = training_job_service_pb2.WatchTrainingJobRequest(name=name, after_number=last)
        call: Any = stub.WatchTrainingJob(request, timeout=left, metadata=connection.metadata)
        try:
            with _watchdog(call) as heard:
                for answer in call:
                    event = answer.event
                    heard(FAREWELL_S if ended else SILENCE_S)
                    away_since, pause_s = None, FIRST_PAUSE_S
                    if event.number <= last:  # a beat, or one that came already
                        continue
                    last = event.number
                    if event.HasField("state_change") and event.state_change.state in ENDED:
                        ended = True
                        heard(FAREWELL_S)
                    yield event
        except grpc.RpcError as error:
            if not is_away(error):
                connection.fail(error)
            broken = error
        finally:
            call.cancel()
        if ended or (broken is None and _has_ended(connection, stub, name)):
            return
        now = time.monotonic()
        if broken is not None:
            if away_since is None:
                away_since = now
                on_away(away_s)
            if now - away_since > away_s and not (deadline is not None and now >= deadline):
                raise ServerUnavailable(str(connection.address), f"it has been away for {away_s:g} s") from broken
        if deadline is not None:
            pause_s = min(pause_s, max(0.0, deadline - now))
        time.sleep(pause_s)
        pause_s = min(2 * max(pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)


def _has_ended(connection: Connection, stub: Any, name: str) -> bool:
    """Whether the job has ended, asked when a stream closes in peace: a server that stops closes it as well."""
    request = training_job_service_pb2.GetTrainingJobRequest(name=name)
    try:
        job = connection.call(stub.GetTrainingJob, request)
    except ServerUnavailable:
        return False
    return job.state in ENDED


@contextmanager
def _watchdog(call: Any) -> Iterator[Any]:
    """Cancels the call when nothing was heard for too long; yields the function that says what was heard."""
    until = [time.monotonic() + SILENCE_S]
    stop = threading.Event()

    def heard(patience_s: float) -> None:
        until[0] = time.monotonic() + patience_s

    def guard() -> None:
        while not stop.wait(0.5):
            if time.monotonic() > until[0]:
                call.cancel()
                return

    thread = threading.Thread(target=guard, name="lockstep-watch", daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        stop.set()
        thread.join(timeout=2)
