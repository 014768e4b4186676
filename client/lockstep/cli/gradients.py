"""The command that has a job's gradients compared with differences of its loss: gradcheck."""

from __future__ import annotations

from contextlib import nullcontext

import click

from lockstep.cli.conventions import NOT_SUCCEEDED, Target, as_json
from lockstep.cli.job_lines import State, gradient_table, state_line
from lockstep.cli.jobs import ended
from lockstep.cli.output import json_line, result, talk
from lockstep.v1 import training_job_pb2


@click.command()
@click.argument("file", type=click.Path())
@as_json
@click.pass_obj
def gradcheck(target: Target, file: str, as_json: bool) -> None:
    """Check the backward pass of the job in FILE, as a job of its own on one worker.

    The gradients at the initial weights, on rows of the dataset, are compared with central differences of the loss in float64,
    and those in float32 with those in float64. Progress goes to stderr, the table to stdout. Exit code 1: a gradient is wrong,
    or the job did not get so far.
    """
    from lockstep.cli.progress import PlainView

    with target.connect() as client:
        submitted = client.submit(file, kind=training_job_pb2.TrainingJob.GRADIENT_CHECK)
        talk(submitted.name)
        for warning in submitted.warnings:
            talk(f"note: {warning}")
        job = ended(client, submitted.name, nullcontext(PlainView(say=talk).show))
    if as_json:
        json_line(job)
    else:
        if job.result.HasField("gradient_check"):
            gradient_table(job.result.gradient_check)
        result(state_line(job))
    if job.state != State.SUCCEEDED:
        raise click.exceptions.Exit(NOT_SUCCEEDED)
