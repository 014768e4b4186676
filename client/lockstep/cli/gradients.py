"""The command that has jobs' gradients compared with differences of their losses: gradcheck."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from lockstep.cli.conventions import NOT_SUCCEEDED, Target, as_json
from lockstep.cli.job_lines import State, state_line
from lockstep.cli.jobs import ended_quietly
from lockstep.cli.output import json_line, result, talk
from lockstep.cli.result_tables import gradient_table
from lockstep.contract.errors import UserError, Violation
from lockstep.v1 import training_job_pb2

if TYPE_CHECKING:
    from lockstep.client import Client

CHECK = training_job_pb2.TrainingJob.GRADIENT_CHECK


@click.command()
@click.argument("files", metavar="FILE...", type=click.Path(), nargs=-1, required=True)
@as_json
@click.pass_obj
def gradcheck(target: Target, files: tuple[str, ...], as_json: bool) -> None:
    """Check the backward pass of the job in each FILE, as a job of its own on one worker, one after the other.

    The gradients at the initial weights, on rows of the dataset, are compared with central differences of the loss in float64,
    and those in float32 with those in float64. Progress goes to stderr, a table for each job to stdout. Nothing is checked if
    one of several files is refused. Exit code 1: a gradient is wrong, or a job did not get so far.
    """
    failed = []
    with target.connect() as client:
        if len(files) > 1:
            _refuse_early(client, files)
        for number, file in enumerate(files):
            if len(files) > 1 and not as_json:
                result(f"\n{file}" if number else file)
            job = ended_quietly(client, client.submit(file, kind=CHECK))
            if as_json:
                json_line(job)
            else:
                if job.result.HasField("gradient_check"):
                    gradient_table(job.result.gradient_check)
                result(state_line(job))
            if job.state != State.SUCCEEDED:
                failed.append(file)
    if len(files) > 1:
        talk(f"{len(files) - len(failed)} of {len(files)} passed" + (f", not: {', '.join(failed)}" if failed else ""))
    if failed:
        raise click.exceptions.Exit(NOT_SUCCEEDED)


def _refuse_early(client: Client, files: Sequence[str]) -> None:
    """Raises UserError with all that is wrong with all of the files, before the first of them takes its time."""
    found: dict[Violation, None] = {}  # in order; what is wrong with the server is said once
    for file in files:
        try:
            client.submit(file, kind=CHECK, validate_only=True)
        except UserError as error:
            found |= dict.fromkeys(error.violations)
    if found:
        raise UserError(list(found))
