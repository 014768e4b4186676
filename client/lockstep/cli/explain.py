"""The command that explains the fields of a job file from the rules in the protos: explain."""

from __future__ import annotations

import re
from typing import Any

import click
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict

from lockstep.cli.conventions import as_json
from lockstep.cli.output import json_line, result, table
from lockstep.contract.errors import UserError
from lockstep.contract.rules import fields_of, map_value, rules_of
from lockstep.likely import either, homes, likely
from lockstep.v1 import job_spec_pb2

KINDS = {
    FieldDescriptor.TYPE_DOUBLE: "real number",
    FieldDescriptor.TYPE_UINT32: "whole number",
    FieldDescriptor.TYPE_UINT64: "whole number",
    FieldDescriptor.TYPE_INT32: "whole number",
    FieldDescriptor.TYPE_INT64: "whole number",
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BOOL: "true or false",
}


@click.command()
@click.argument("field", required=False, default="")
@as_json
def explain(field: str, as_json: bool) -> None:
    """Explain FIELD of a job file: type, range, unit, default, and what lies below it.

    As in: lockstep explain optimizer.momentum.learning_rate, or model.layers.dense. Without FIELD, the keys at the top.
    """
    found, inside = _find(re.sub(r"\[\d*\]", "", field))
    below = [{"name": part.name, "type": _kind(part), **_facts(part)} for part in fields_of(inside)] if inside else []
    if as_json:
        own = {"type": _kind(found), **_facts(found)} if found else {}
        json_line({"field": field, **own, **({"fields": below} if below else {})})
        return
    if found is not None:
        result(f"{field}: {_kind(found)}{_words(_facts(found))}")
    if below:
        rows = [(str(part["name"]), str(part["type"]), _words(part).removeprefix(", ")) for part in below]
        table(("FIELD", "TYPE", "RULES"), rows)
    elif inside is not None:
        result("It has no fields: write {}.")


def _find(path: str) -> tuple[FieldDescriptor | None, Descriptor | None]:
    """The field at a path, and the message it holds. Raises UserError with the likely name."""
    inside: Descriptor | None = job_spec_pb2.JobSpec.DESCRIPTOR
    found: FieldDescriptor | None = None
    walked = ""
    for name in path.split(".") if path else ():
        known = {field.name: field for field in fields_of(inside)} if inside else {}
        if name not in known:
            raise UserError.of(f"{walked}.{name}".lstrip("."), "", _remedy(name, list(known)), "UNKNOWN_KEY")
        found = known[name]
        inside = found.message_type if map_value(found) is None else None
        walked = f"{walked}.{name}".lstrip(".")
    return found, inside


def _remedy(name: str, known: list[str]) -> str:
    if guess := likely(name, known):
        return f"there is no such field; {either(guess)}"
    if elsewhere := homes(job_spec_pb2.JobSpec.DESCRIPTOR, name, ()):
        return f"there is no such field here; there is {', '.join(elsewhere[:6])}"
    return f"there is no such field; {'the fields here are ' + ', '.join(known) if known else 'nothing lies below'}"


def _kind(field: FieldDescriptor) -> str:
    if map_value(field) is not None:
        return "mapping of names to text"
    if field.enum_type is not None:
        kind = "one of " + ", ".join(value.name for value in field.enum_type.values if value.number)
    elif field.message_type is not None:
        kind = "mapping"
    else:
        kind = KINDS.get(field.type, "value")
    return f"list, each a {kind}" if field.is_repeated else kind


def _facts(field: FieldDescriptor) -> dict[str, Any]:
    """The rules of a field by their names in the proto."""
    return MessageToDict(rules_of(field), preserving_proto_field_name=True)


def _words(facts: dict[str, Any]) -> str:
    bounds = (("gt", "above"), ("gte", "at least"), ("lt", "below"), ("lte", "at most"))
    words = ["required"] if facts.get("required") else []
    words += [f"{word} {_number(facts[rule])}" for rule, word in bounds if rule in facts]
    words += [f"in {facts['unit']}"] if "unit" in facts else []
    words += [
        f"{word} {facts[rule]:,} items" for rule, word in (("min_items", "at least"), ("max_items", "at most")) if rule in facts
    ]
    words += [f"at most {facts['max_len']:,} characters"] if "max_len" in facts else []
    words += [f"matches {facts['pattern']}"] if "pattern" in facts else []
    words += [f"default: {facts['default']}"] if "default" in facts else []
    return "".join(f", {word}" for word in words)


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else repr(value)
