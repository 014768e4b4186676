"""The command that has steps of a job taken again and its checkpoint compared: verify."""

from __future__ import annotations

import click

from lockstep.cli.conventions import NOT_SUCCEEDED, NUMBER, Target, as_json
from lockstep.cli.job_lines import State, state_line
from lockstep.cli.jobs import ended_quietly
from lockstep.cli.output import json_line, result
from lockstep.cli.result_tables import replay_table


@click.command()
@click.argument("job")
@click.option("--step", type=NUMBER, help="The checkpoint of this step; else the last one.")
@as_json
@click.pass_obj
def verify(target: Target, job: str, step: int | None, as_json: bool) -> None:
    """Replay JOB up to a checkpoint, from the one before or the seed, as a job of its own, and compare.

    JOB has ended or is paused. Progress goes to stderr, what was compared to stdout. Exit code 1: the checkpoint is not what
    the job computes, or the replay did not get so far.
    """
    with target.connect() as client:
        done = ended_quietly(client, client.verify(job, step=step))
    if as_json:
        json_line(done)
    else:
        if done.result.HasField("replay"):
            replay_table(done.result.replay)
        result(state_line(done))
    if done.state != State.SUCCEEDED:
        raise click.exceptions.Exit(NOT_SUCCEEDED)
