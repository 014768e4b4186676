"""The commands on datasets: push, list, show, delete."""

from __future__ import annotations

import re
from pathlib import Path

import click

from lockstep.cli.conventions import Target, as_json
from lockstep.cli.output import json_line, moment, pairs, result, size, table, talk
from lockstep.names import dataset_name, short
from lockstep.v1 import dataset_service_pb2

State = dataset_service_pb2.Dataset.State

SUFFIXES = (".npz", ".csv")


@click.group()
def dataset() -> None:
    """Register, list and remove datasets."""


@dataset.command()
@click.argument("name_and_file", nargs=-1, required=True, metavar="[NAME] FILE")
@click.option("--label", help="CSV: the label column.")
@click.option("--delimiter", help="CSV: what stands between fields; a comma by default.")
@click.option("--decimal", help="CSV: what stands before the fraction; a point by default.")
@click.option("--skip-lines", type=click.IntRange(0, 1000), help="CSV: lines before the header.")
@click.option("--inputs", help="NPZ: the array of inputs; x by default.")
@click.option("--labels", help="NPZ: the array of labels; y by default.")
@as_json
@click.pass_obj
def push(
    target: Target,
    name_and_file: tuple[str, ...],
    label: str | None,
    delimiter: str | None,
    decimal: str | None,
    skip_lines: int | None,
    inputs: str | None,
    labels: str | None,
    as_json: bool,
) -> None:
    """Register FILE (.npz or .csv) as dataset NAME, by default the file's name without its ending.

    The same NAME with other content makes a new version.
    """
    name, path = _name_and_file(name_and_file)
    with target.connect() as client:
        registered = client.push_dataset(
            path,
            name,
            label=label,
            inputs=inputs,
            labels=labels,
            delimiter=delimiter,
            decimal=decimal,
            skip_lines=skip_lines,
        )
    if as_json:
        json_line(registered)
        return
    result(registered.name)
    talk(_schema_words(registered.schema))
    for warning in registered.warnings:
        talk(f"note: {warning}")


def _name_and_file(words: tuple[str, ...]) -> tuple[str, str]:
    if len(words) > 2:
        raise click.UsageError(f"one NAME and one FILE, not {len(words)} words")
    if len(words) == 2 and Path(words[0]).suffix.lower() in SUFFIXES and Path(words[1]).suffix.lower() not in SUFFIXES:
        raise click.UsageError(f"NAME comes before FILE: lockstep dataset push {words[1]} {words[0]}")
    path = words[-1]
    stem = re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-")
    if len(words) == 1 and not stem:
        raise click.UsageError(f"no dataset can be named after that file; give a name: lockstep dataset push NAME {path}")
    return (words[0] if len(words) == 2 else stem), path


def _schema_words(schema: dataset_service_pb2.DatasetSchema) -> str:
    shape = " x ".join(map(str, schema.input_shape))
    if schema.HasField("numbers"):
        width = schema.numbers.width
        wanted = "a number to predict" if width == 1 else f"{width:,} numbers to predict"
    else:
        names = ", ".join(schema.classes.names[:10]) + (", ..." if len(schema.classes.names) > 10 else "")
        wanted = f"{schema.classes.count:,} classes" + (f" ({names})" if names else "")
        if schema.classes.HasField("positions"):
            wanted += f" at each of {schema.classes.positions:,} positions"
        if schema.classes.HasField("no_label"):
            wanted += f" ({schema.classes.no_label} where there is none)"
    return f"{schema.rows:,} rows, inputs {shape}, {wanted}, {size(schema.size_bytes)}"


@dataset.command("list")
@as_json
@click.pass_obj
def list_(target: Target, as_json: bool) -> None:
    """List datasets."""
    with target.connect() as client:
        if as_json:
            for found in client.list_datasets():
                json_line(found)
            return
        rows = [
            (
                short(found.name),
                State.Name(found.state),
                f"{found.schema.rows:,}",
                str(len(found.versions)),
                moment(found.update_time),
                found.digest[:12],
            )
            for found in client.list_datasets()
        ]
    if rows:
        table(("DATASET", "STATE", "ROWS", "VERSIONS", "UPDATED", "DIGEST"), rows)
    else:
        talk("no datasets; register one with: lockstep dataset push NAME FILE")


@dataset.command()
@click.argument("name")
@as_json
@click.pass_obj
def show(target: Target, name: str, as_json: bool) -> None:
    """Show dataset NAME and its versions."""
    with target.connect() as client:
        found = client.get_dataset(name)
    if as_json:
        json_line(found)
        return
    detail = f": {found.status_detail}" if found.status_detail else ""
    result(f"{found.name}  {State.Name(found.state)}{detail}")
    pairs(
        [
            ("content", _schema_words(found.schema)),
            ("label", found.schema.label_name),
            ("inputs", ", ".join(found.schema.input_names[:20])),
            ("created", moment(found.create_time)),
        ]
    )
    for warning in found.warnings:
        result(f"note: {warning}")
    versions = [(one.digest, f"{one.rows:,}", size(one.size_bytes), moment(one.create_time)) for one in found.versions]
    if versions:
        table(("VERSION", "ROWS", "SIZE", "CREATED"), versions)


@dataset.command()
@click.argument("name")
@as_json
@click.pass_obj
def delete(target: Target, name: str, as_json: bool) -> None:
    """Remove dataset NAME and its versions; refused while a live job uses it."""
    with target.connect() as client:
        client.delete_dataset(name)
    if as_json:
        json_line({"deleted": dataset_name(name)})
    else:
        talk(f"deleted {dataset_name(name)}")
