"""The command on models: pull."""

from __future__ import annotations

import json

import click

from lockstep.cli.conventions import NUMBER, Target, as_json
from lockstep.cli.output import json_line, result, talk
from lockstep.names import short


@click.group()
def model() -> None:
    """Take trained models home."""


@model.command()
@click.argument("job")
@click.argument("folder", required=False)
@click.option("--step", type=NUMBER, help="The checkpoint of this step; else the last.")
@as_json
@click.pass_obj
def pull(target: Target, job: str, folder: str | None, step: int | None, as_json: bool) -> None:
    """Download the model of JOB into FOLDER, by default one named like the job.

    It holds model.safetensors and manifest.json. Sizes, SHA-256 and the hash of the weights are checked first.
    """
    place = folder or short(job)
    with target.connect() as client:
        manifest = client.pull_model(job, place, step=step)
    if as_json:
        json_line({"folder": place, "manifest": json.loads(manifest.to_json())})
        return
    result(f"{place}/model.safetensors")
    result(f"{place}/manifest.json")
    talk(f"step {manifest.step:,}, weights_sha256 {manifest.weights_sha256} (checked)")
