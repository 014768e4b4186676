"""The commands on job files: submit, plan."""

from __future__ import annotations

import click

from lockstep.cli.conventions import Target, as_json
from lockstep.cli.jobs import follow
from lockstep.cli.output import json_line, pairs, result, size, table, talk
from lockstep.names import short
from lockstep.v1 import training_job_pb2


@click.command()
@click.argument("file", type=click.Path())
@click.option("--watch", is_flag=True, help="Watch the job to its end.")
@click.option("--dry-run", is_flag=True, help="Only check the job, on the server; nothing is stored.")
@as_json
@click.pass_obj
def submit(target: Target, file: str, watch: bool, dry_run: bool, as_json: bool) -> None:
    """Submit the job in FILE (YAML or JSON). With --json and --watch the last object is the finished job."""
    if watch and dry_run:
        raise click.UsageError("--watch and --dry-run cannot be given together")
    with target.connect() as client:
        job = client.submit(file, validate_only=dry_run)
        if as_json:
            json_line(job)
        elif dry_run:
            talk("The job is valid; nothing was stored.")
            show_plan(job.plan)
        else:
            result(job.name)
        for warning in job.warnings:
            talk(f"note: {warning}")
        if dry_run:
            return
        if watch:
            follow(client, job.name, as_json, finished=True)
        elif not as_json:
            talk(f"watch it with: lockstep watch {short(job.name)}")


@click.command()
@click.argument("file", type=click.Path())
@as_json
@click.pass_obj
def plan(target: Target, file: str, as_json: bool) -> None:
    """Say what the job in FILE would do: rows, steps, shards, memory. Nothing is stored."""
    with target.connect() as client:
        answer = client.plan(file)
    if as_json:
        json_line(answer)
        return
    show_plan(answer.plan)
    result(f"arithmetic digest  {answer.arithmetic_digest}")
    for warning in answer.warnings:
        talk(f"note: {warning}")


def shards_text(plan: training_job_pb2.Plan) -> str:
    """How many shards there are, and how many of them have rows where that is fewer."""
    few = 0 < plan.filled_shards < plan.shards
    return f"{plan.shards}, of which a mini-batch fills {plan.filled_shards}" if few else f"{plan.shards}"


def show_plan(plan: training_job_pb2.Plan) -> None:
    """A plan for people."""
    pairs(
        [
            ("rows", f"{plan.training_rows:,} train, {plan.validation_rows:,} validate"),
            ("steps", f"{plan.total_steps:,}, {plan.steps_per_epoch:,} an epoch"),
            ("shards", shards_text(plan)),
            ("parameters", f"{plan.parameters:,}"),
            ("memory", f"{size(plan.worker_memory_bytes)} a worker"),
            ("checkpoint", size(plan.checkpoint_bytes)),
        ]
    )
    if plan.layers:
        rows = [(layer.name, " x ".join(map(str, layer.output_shape)), f"{layer.parameters:,}") for layer in plan.layers]
        table(("LAYER", "OUTPUT", "PARAMETERS"), rows)
