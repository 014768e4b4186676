"""The command that compares two jobs and finds the step at which they part: diff."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from lockstep.cli.conventions import NOT_SUCCEEDED, Target, as_json
from lockstep.cli.job_lines import State, state_line
from lockstep.cli.jobs import ended_quietly
from lockstep.cli.output import json_line, result, table, talk
from lockstep.comparison import (
    Parting,
    Recorded,
    differences,
    find_parting,
    first_loss_apart,
    first_weights_apart,
    same_function,
)
from lockstep.contract.errors import UserError
from lockstep.names import short
from lockstep.v1 import training_job_pb2
from lockstep.watching import ENDED

if TYPE_CHECKING:
    from lockstep.client import Client

DECIDES_NOTHING = "decides nothing"


@click.command()
@click.argument("job")
@click.argument("other")
@as_json
@click.pass_obj
def diff(target: Target, job: str, other: str, as_json: bool) -> None:
    """Say in what JOB and OTHER differ, and the step at which their weights part.

    First what was asked, field by field; then their recorded losses and checkpoints; between these, both are replayed to the
    first step whose weights differ. Both have ended. Exit code 1: their weights part, or a replay did not get so far.
    """
    with target.connect() as client:
        one, two = _ended(client, job), _ended(client, other)
        fields = differences(one, two)
        same = same_function(one, two)
        if not as_json:
            if fields:
                rows = [(each.field, each.one, each.other, "" if each.decides else DECIDES_NOTHING) for each in fields]
                table(("FIELD", short(one.name), short(two.name), ""), rows)
            result(_asked(same, one, two))
        first, second = (Recorded.of(each, client.watch(each.name)) for each in (one, two))
        loss, weights = first_loss_apart(first, second), first_weights_apart(first, second)
        if not as_json:
            result(_recorded(first, second))
        if same and loss is None and weights is None:
            parting = Parting(same_step=min(first.last_step, second.last_step))
        else:
            parting = find_parting(first, second, lambda name, steps: _replay(client, name, steps))
    if as_json:
        json_line(
            {
                "jobs": [one.name, two.name],
                "differences": [
                    {"field": each.field, "values": [each.one, each.other], "decides_weights": each.decides} for each in fields
                ],
                "same_arithmetic": same,
                "loss_differs_at_step": loss,
                "checkpoint_differs_at_step": weights,
                "parted_at_step": parting.step,
                "same_up_to_step": parting.same_step,
                "weights_sha256": list(parting.weights) if parting.step is not None else [],
                "not_as_computed": [{"job": name, "step": step} for name, step in parting.doubted],
            }
        )
    else:
        result(_found(parting, one.name, two.name))
        for name, step in parting.doubted:
            result(f"the checkpoint of step {step:,} of {name} is not what its replay gives: lockstep verify {short(name)}")
    if parting.step is not None or parting.doubted:
        raise click.exceptions.Exit(NOT_SUCCEEDED)


def _ended(client: Client, name: str) -> training_job_pb2.TrainingJob:
    found = client.get(name)
    if found.kind not in (training_job_pb2.TrainingJob.TRAINING, training_job_pb2.TrainingJob.KIND_UNSPECIFIED):
        kind = training_job_pb2.TrainingJob.Kind.Name(found.kind)
        raise UserError.of("job", found.name, f"it is a {kind}; give two training jobs", "NOT_A_TRAINING")
    if found.state not in ENDED:
        raise UserError.of("job", found.name, f"it is {State.Name(found.state)}; compare jobs that have ended", "JOB_NOT_ENDED")
    return found


def _asked(same: bool, one: training_job_pb2.TrainingJob, two: training_job_pb2.TrainingJob) -> str:
    if same:
        return f"both are the same function: arithmetic digest {one.arithmetic_digest}"
    if one.arithmetic_digest == two.arithmetic_digest:
        return f"the same was asked of both, arithmetic digest {one.arithmetic_digest}, and their nodes compute otherwise"
    return f"different arithmetic was asked: digests {one.arithmetic_digest[:12]} and {two.arithmetic_digest[:12]}"


def _recorded(one: Recorded, two: Recorded) -> str:
    said = []
    loss, weights = first_loss_apart(one, two), first_weights_apart(one, two)
    if loss is not None:
        said.append(f"the loss of step {loss:,}, {one.losses[loss]!r} and {two.losses[loss]!r}")
    if weights is not None:
        said.append(f"the checkpoints of step {weights:,}, {one.weights[weights][:12]} and {two.weights[weights][:12]}")
    common = len(one.losses.keys() & two.losses.keys()), len(one.weights.keys() & two.weights.keys())
    if not said:
        losses, checkpoints = _many(common[0], "loss", "losses"), _many(common[1], "checkpoint", "checkpoints")
        return f"nothing recorded differs: {losses} and {checkpoints} are of the same steps"
    return f"recorded, first to differ are {', and '.join(said)}"


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _found(parting: Parting, one: str, two: str) -> str:
    if parting.step is None:
        return f"their weights are the same up to step {parting.same_step:,}"
    hashes = f"{one} has {parting.weights[0]}, {two} {parting.weights[1]}"
    if parting.step == 0:
        return f"they part at step 0, their initial weights: {hashes}"
    before = f"after step {parting.same_step:,} both have weights_sha256 {parting.same_weights}"
    return f"they part at step {parting.step:,}: {before}, after step {parting.step:,} {hashes}"


def _replay(client: Client, name: str, steps: Sequence[int]) -> Sequence[training_job_pb2.ReplayedStep]:
    many = f"{len(steps):,} steps, {steps[0]:,} to {steps[-1]:,}" if len(steps) > 1 else f"step {steps[0]:,}"
    talk(f"{name} is replayed and hashed after {many}")
    done = ended_quietly(client, client.verify(name, hashed_steps=steps))
    if done.state != State.SUCCEEDED:
        talk(state_line(done))
        raise click.exceptions.Exit(NOT_SUCCEEDED)
    asked = []
    for found in done.result.replay.steps:
        if found.step in steps:
            asked.append(found)
        else:  # a checkpoint with which it would have begun
            talk(
                f"{name}: the checkpoint of step {found.step:,} was altered: it has weights_sha256 "
                f"{found.checkpoint_weights_sha256}, the replay gives {found.weights_sha256}"
            )
    return asked
