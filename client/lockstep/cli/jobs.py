"""The commands that follow and steer a job: watch, wait, cancel, pause, resume, scale, delete."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import click

from lockstep.cli.conventions import INTERRUPTED, NOT_SUCCEEDED, NUMBER, Command, Seconds, Target, as_json
from lockstep.cli.job_lines import WAIT_STATES, State, result_words, state_line
from lockstep.cli.output import json_line, result, talk
from lockstep.cli.result_tables import gradient_table, replay_table
from lockstep.contract.errors import UserError
from lockstep.names import job_name, short
from lockstep.v1 import training_job_pb2
from lockstep.watching import ENDED

if TYPE_CHECKING:
    from lockstep.client import Client

Event = training_job_pb2.JobEvent


def follow(client: Client, name: str, as_json: bool, *, finished: bool, after_number: int = 0) -> None:
    """Shows a job's events to its end, then the job; leaves with an exit code unless the job succeeded."""
    from lockstep.cli.progress import observer

    view = nullcontext(json_line) if as_json else observer(name)
    job = ended(client, name, view, after_number, once=not as_json)
    if as_json:
        if finished:
            json_line(job)
    else:
        _farewell(job)
    if job.state != State.SUCCEEDED:
        raise click.exceptions.Exit(NOT_SUCCEEDED)


def ended(
    client: Client,
    name: str,
    view: AbstractContextManager[Callable[[Event], None]],
    after_number: int = 0,
    *,
    once: bool = False,
) -> training_job_pb2.TrainingJob:
    """Watches a job to its end, each event shown in `view`. Ctrl-C leaves with its exit code, and the job goes on.

    With `once` what the returned job says of its end is left to that.
    """
    from lockstep.cli.progress import Once

    seen = training_job_pb2.StateChange()
    try:
        with view as show_each:
            until_end = Once(show_each)
            show = until_end.show if once else show_each
            for event in client.watch(name, after_number=after_number, on_away=_away):
                if event.HasField("state_change"):
                    seen = event.state_change
                show(event)
            until_end.close()
        return _finished(client, name, seen)
    except KeyboardInterrupt:
        talk(f"\nno longer watching; the job goes on. Come back with: lockstep watch {short(name)}")
        raise click.exceptions.Exit(INTERRUPTED) from None


def ended_quietly(client: Client, submitted: training_job_pb2.TrainingJob) -> training_job_pb2.TrainingJob:
    """A job that was just submitted, watched to its end on stderr: stdout is for what it gives."""
    from lockstep.cli.progress import PlainView

    talk(submitted.name)
    for warning in submitted.warnings:
        talk(f"note: {warning}")
    return ended(client, submitted.name, nullcontext(PlainView(say=talk).show))


def _away(seconds: float) -> None:
    talk(f"the server is away; trying again for {seconds:g} s")


def _finished(client: Client, name: str, seen: training_job_pb2.StateChange) -> training_job_pb2.TrainingJob:
    """The job; where it was deleted as soon as it had ended, what its events said of the end."""
    try:
        return client.get(name)
    except UserError:
        if seen.state not in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
            raise
        talk(f"{name} was deleted after its end")
        return training_job_pb2.TrainingJob(name=name, state=seen.state, status_detail=seen.detail)


def _farewell(job: training_job_pb2.TrainingJob) -> None:
    result(state_line(job))
    if words := result_words(job.result):
        result(words)
    if job.result.HasField("gradient_check"):
        gradient_table(job.result.gradient_check)
    if job.result.HasField("replay"):
        replay_table(job.result.replay)
    if job.HasField("result") and job.result.checkpoints:
        talk(f"take the model home with: lockstep model pull {short(job.name)}")


@click.command()
@click.argument("job")
@click.option("--after", "after_number", type=NUMBER, default=0, help="Only events after this number.")
@as_json
@click.pass_obj
def watch(target: Target, job: str, after_number: int, as_json: bool) -> None:
    """Show what happens to JOB until it ends. Ctrl-C detaches; the job goes on."""
    with target.connect() as client:
        follow(client, job_name(job), as_json, finished=False, after_number=after_number)


@click.command()
@click.argument("job")
@click.option(
    "--for", "state", type=click.Choice(WAIT_STATES, case_sensitive=False), help="The state to wait for; else any end."
)
@click.option("--timeout", "timeout_s", type=Seconds(), help="Give up after so many seconds.")
@as_json
@click.pass_obj
def wait(target: Target, job: str, state: str | None, timeout_s: float | None, as_json: bool) -> None:
    """Wait until JOB has ended, or is in a state. Exit code 1: it ended in another, or not in time."""
    wanted = State.Value(state) if state else State.SUCCEEDED
    with target.connect() as client:
        try:
            reached = client.wait(job, {wanted} if state else (), timeout_s=timeout_s)
        except KeyboardInterrupt:
            talk("\nno longer waiting; the job goes on")
            raise click.exceptions.Exit(INTERRUPTED) from None
    if as_json:
        json_line(reached)
    else:
        result(state_line(reached))
    if state and reached.state != wanted and reached.state in ENDED:
        talk(f"error: {reached.name}: it has ended and is {State.Name(reached.state)}, not {state}")
    if reached.state != wanted:
        raise click.exceptions.Exit(NOT_SUCCEEDED)


def _with_bounds(command: Command) -> Command:
    """The options for how many workers a job may have."""
    least = click.option("--min", "least", type=click.IntRange(1, 64), help="Wait rather than run with fewer workers.")
    return least(click.option("--max", "most", type=click.IntRange(1, 64), help="Never more workers.")(command))


def _bounds(job: training_job_pb2.TrainingJob, most: int | None) -> None:
    """Says how many workers a job may have now, and why that is less than was asked."""
    workers = job.spec.workers
    capped = [warning for warning in job.warnings if warning.startswith("workers.max ")] if workers.max != most else []
    talk("\n".join([f"workers: at least {workers.min}, at most {workers.max}", *capped]))


def _steered(job: training_job_pb2.TrainingJob, as_json: bool) -> None:
    if as_json:
        json_line(job)
    else:
        result(state_line(job))


@click.command()
@click.argument("job")
@as_json
@click.pass_obj
def cancel(target: Target, job: str, as_json: bool) -> None:
    """End JOB; its last checkpoint is kept."""
    with target.connect() as client:
        _steered(client.cancel(job), as_json)


@click.command()
@click.argument("job")
@as_json
@click.pass_obj
def pause(target: Target, job: str, as_json: bool) -> None:
    """Let JOB rest: the steps under way end, a checkpoint is written, and its slots are given back."""
    with target.connect() as client:
        paused = client.pause(job)
    _steered(paused, as_json)
    if not as_json:
        wait_first = "" if paused.state == State.PAUSED else f"lockstep wait {short(paused.name)} --for PAUSED && "
        talk(f"go on with: {wait_first}lockstep resume {short(paused.name)}")


@click.command()
@click.argument("job")
@_with_bounds
@click.option("--accept-new-arithmetic", is_flag=True, help="Go on although this server computes with a newer arithmetic.")
@as_json
@click.pass_obj
def resume(target: Target, job: str, least: int | None, most: int | None, accept_new_arithmetic: bool, as_json: bool) -> None:
    """Put a paused JOB back into the queue; it goes on from its last checkpoint, with the same weights on any workers."""
    with target.connect() as client:
        resumed = client.resume(job, min=least, max=most, accept_new_arithmetic=accept_new_arithmetic)
    _steered(resumed, as_json)
    if not as_json and (least, most) != (None, None):
        _bounds(resumed, most)


@click.command()
@click.argument("job")
@_with_bounds
@as_json
@click.pass_obj
def scale(target: Target, job: str, least: int | None, most: int | None, as_json: bool) -> None:
    """Change how many workers JOB may have, whether it runs, waits or is paused; its weights stay the same."""
    if least is None and most is None:
        raise click.UsageError("give --min, --max or both")
    with target.connect() as client:
        scaled = client.scale(job, min=least, max=most)
    _steered(scaled, as_json)
    if not as_json:
        _bounds(scaled, most)


@click.command()
@click.argument("job")
@as_json
@click.pass_obj
def delete(target: Target, job: str, as_json: bool) -> None:
    """Remove an ended JOB, its checkpoints and its events."""
    with target.connect() as client:
        client.delete(job)
    if as_json:
        json_line({"deleted": job_name(job)})
    else:
        talk(f"deleted {job_name(job)}")
