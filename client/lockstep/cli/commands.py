"""The list of all commands."""

from __future__ import annotations

import click

from lockstep.cli import datasets, differences, explain, gradients, jobs, lookups, models, replays, submission


def register(group: click.Group) -> None:
    """Puts every command into the group, in the order of the help."""
    for command in (
        submission.submit,
        submission.plan,
        gradients.gradcheck,
        replays.verify,
        differences.diff,
        lookups.jobs,
        lookups.show,
        jobs.watch,
        jobs.wait,
        jobs.cancel,
        jobs.pause,
        jobs.resume,
        jobs.scale,
        jobs.delete,
        datasets.dataset,
        models.model,
        lookups.cluster,
        lookups.version,
        explain.explain,
    ):
        group.add_command(command)
