"""The command that has steps of a job taken again and its checkpoint compared: verify."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

from lockstep.cli.conventions import NOT_SUCCEEDED, NUMBER, Target, as_json
from lockstep.cli.job_lines import State, state_line
from lockstep.cli.jobs import ended
from lockstep.cli.output import json_line, result, talk
from lockstep.cli.result_tables import replay_table
from lockstep.v1 import training_job_pb2

if TYPE_CHECKING:
    from lockstep.client import Client


@click.command()
@click.argument("job")
@click.option("--step", type=NUMBER, help="The checkpoint of this step; else the last one.")
@as_json
@click.pass_obj
def verify(target: Target, job: str, step: int | None, as_json: bool) -> None:
    """Replay JOB up to a checkpoint, from the one before or the seed, as a job of its own, and compare.

    JOB has ended. Progress goes to stderr, what was compared to stdout. Exit code 1: the checkpoint is not what the job
    computes, or the replay did not get so far.
    """
    with target.connect() as client:
        done = replayed(client, client.verify(job, step=step))
    if as_json:
        json_line(done)
    else:
        if done.result.HasField("replay"):
            replay_table(done.result.replay)
        result(state_line(done))
    if done.state != State.SUCCEEDED:
        raise click.exceptions.Exit(NOT_SUCCEEDED)


def replayed(client: Client, submitted: training_job_pb2.TrainingJob) -> training_job_pb2.TrainingJob:
    """A replay, watched to its end on stderr."""
    from lockstep.cli.progress import PlainView

    talk(submitted.name)
    return ended(client, submitted.name, nullcontext(PlainView(say=talk).show))
