"""The one checker of the rules that the protos write beside their fields (proto/lockstep/v1/rules.proto)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from lockstep.contract.errors import Violation
from lockstep.v1 import rules_pb2

# What the key of a map, a label say, must match as a whole.
MAP_KEY_PATTERN = "[a-z]([a-z0-9-]{0,61}[a-z0-9])?"

# The largest number of single precision, in which jobs compute, and the smallest above 0.
LARGEST_SINGLE = (2 - 2.0**-23) * 2.0**127
SMALLEST_SINGLE = 2.0**-149

# How much of a refused value, and how many alternatives of a choice, a message repeats.
MAX_SHOWN_CHARACTERS = 80
MAX_SHOWN_CHOICES = 6

REALS = frozenset({FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT})
WHOLE = frozenset(
    {
        FieldDescriptor.TYPE_INT32,
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_UINT64,
    }
)


@cache
def rules_of(field: FieldDescriptor) -> rules_pb2.FieldRules:
    """The rules of a field; all unset where it has none."""
    return field.GetOptions().Extensions[rules_pb2.rules]


@cache
def written_default(field: FieldDescriptor) -> object:
    """The value that holds when the field is not set; None where the rule has none, or says it in words."""
    text = rules_of(field).default
    if not text:
        return None
    if field.enum_type is not None:
        known = field.enum_type.values_by_name.get(text)
        return known.number if known else None
    try:
        if field.type == FieldDescriptor.TYPE_BOOL:
            return {"true": True, "false": False}.get(text)
        if field.type == FieldDescriptor.TYPE_DOUBLE:
            return float(text)
        if field.type in WHOLE:
            return int(text)
    except ValueError:  # a default in words
        return None
    return None


@cache
def required_choices(descriptor: Descriptor) -> tuple[tuple[str, str], ...]:
    """(name, what must be given) of each choice of a message that must be made."""
    found = []
    for oneof in descriptor.oneofs:
        if oneof.GetOptions().Extensions[rules_pb2.choice].required:
            names = [field.name for field in oneof.fields]
            dots = ["..."] if len(names) > MAX_SHOWN_CHOICES else []
            found.append((oneof.name, f"exactly one of {', '.join(names[:MAX_SHOWN_CHOICES] + dots)} must be given"))
    return tuple(found)


@cache
def fields_of(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """The fields of a message, in the order of the proto."""
    return tuple(descriptor.fields)


def map_value(field: FieldDescriptor) -> FieldDescriptor | None:
    """The field of a map's values, or None for a field that is no map."""
    entry = field.message_type
    return entry.fields_by_name["value"] if entry is not None and entry.GetOptions().map_entry else None


def check(message: Message, path: str = "", given: Container[str] = ()) -> list[Violation]:
    """All that is wrong with `message`, with paths like `model.layers[2].dense.units` that begin with `path`.

    Fields that the server fills are passed over. `given` holds the paths of numbers that stood in the request although they are
    zero, where the caller knows: a zero without presence looks like nothing otherwise.
    """
    return list(_message(message, path, given))


def _message(message: Message, path: str, given: Container[str]) -> Iterator[Violation]:
    for name, remedy in required_choices(message.DESCRIPTOR):
        if message.WhichOneof(name) is None:
            yield Violation(path, "", remedy, "CHOICE_REQUIRED")
    for field in fields_of(message.DESCRIPTOR):
        rules = rules_of(field)
        if rules.output_only:
            continue
        place = f"{path}.{field.name}" if path else field.name
        value = getattr(message, field.name)
        if field.is_repeated:
            yield from _elements(field, rules, value, place, given)
        elif message.HasField(field.name) if field.has_presence else bool(value):
            yield from _one(field, rules, value, place, given)
        elif place in given and not field.has_presence:
            yield from check_value(field, rules, value, place)
        elif rules.required:
            # Only bounds that refuse a zero are worth naming: the others tell a reader nothing about what is missing.
            bound = "" if field.has_presence or isinstance(value, str) else _bound(rules, float(value))
            yield Violation(place, "", f"it is required and {bound[3:]}" if bound else "it is required", "FIELD_REQUIRED")


def _elements(
    field: FieldDescriptor, rules: rules_pb2.FieldRules, value: Any, place: str, given: Container[str]
) -> Iterator[Violation]:
    count = len(value)
    if rules.required and not count:
        yield Violation(place, "", "it is required", "FIELD_REQUIRED")
    elif count < rules.min_items:
        yield Violation(place, f"{count:,} items", f"it must have at least {rules.min_items:,}", "FIELD_ITEMS")
    elif rules.HasField("max_items") and count > rules.max_items:
        yield Violation(place, f"{count:,} items", f"it must have at most {rules.max_items:,}", "FIELD_ITEMS")
    elif (element := map_value(field)) is not None:
        for key in sorted(value):
            if not re.fullmatch(MAP_KEY_PATTERN, key):
                remedy = f"its key must match {MAP_KEY_PATTERN}"
                yield Violation(f"{place}.{_cut(key)}", shown(key), remedy, "FIELD_PATTERN")
            yield from _one(element, rules, value[key], f"{place}.{_cut(key)}", given)
    else:
        for index, item in enumerate(value):
            yield from _one(field, rules, item, f"{place}[{index}]", given)


def _one(
    field: FieldDescriptor, rules: rules_pb2.FieldRules, value: Any, place: str, given: Container[str]
) -> Iterator[Violation]:
    if isinstance(value, Message):
        yield from _message(value, place, given)
    else:
        yield from check_value(field, rules, value, place)


def check_value(field: FieldDescriptor, rules: rules_pb2.FieldRules, value: Any, place: str) -> Iterator[Violation]:
    """What is wrong with one scalar of a field: the first rule that it breaks."""
    if field.enum_type is not None:
        if value not in field.enum_type.values_by_number:
            names = ", ".join(known.name for known in field.enum_type.values if known.number)
            yield Violation(place, str(value), f"it must be one of {names}", "ENUM_UNKNOWN")
    elif isinstance(value, str):
        if rules.HasField("max_len") and len(value) > rules.max_len:
            remedy = f"it must have at most {rules.max_len:,} characters"
            yield Violation(place, f"{len(value):,} characters", remedy, "FIELD_TOO_LONG")
        elif rules.pattern and not re.fullmatch(rules.pattern, value):
            yield Violation(place, shown(value), f"it must match {rules.pattern}", "FIELD_PATTERN")
    elif field.type in REALS and not math.isfinite(value):
        bound = _bound(rules, math.nan)
        remedy = f"it must be a finite number and {bound[3:]}" if bound else "it must be a finite number"
        yield Violation(place, shown(value), remedy, "FIELD_NOT_FINITE")
    elif not isinstance(value, bool | bytes) and (bound := _bound(rules, value) or _single(field, rules, value)):
        yield Violation(place, shown(value), bound, "FIELD_OUT_OF_RANGE")


def _bound(rules: rules_pb2.FieldRules, value: float) -> str:
    """The first bound that `value` does not keep, as "it must be ..."; a value keeps a bound only if the comparison says so."""
    if rules.HasField("gt") and not value > rules.gt:
        return f"it must be above {_number(rules.gt)}"
    if rules.HasField("gte") and not value >= rules.gte:
        return f"it must be at least {_number(rules.gte)}"
    if rules.HasField("lt") and not value < rules.lt:
        return f"it must be below {_number(rules.lt)}"
    if rules.HasField("lte") and not value <= rules.lte:
        return f"it must be at most {_number(rules.lte)}"
    return ""


def _single(field: FieldDescriptor, rules: rules_pb2.FieldRules, value: float) -> str:
    """What keeps a number that must be above 0 from being 0 or infinite in single precision, and any other from infinity."""
    if field.type in REALS and abs(value) > LARGEST_SINGLE:
        return f"it must be at most {LARGEST_SINGLE:.7g}, the largest number of single precision"
    if field.type in REALS and rules.HasField("gt") and rules.gt == 0 and value < SMALLEST_SINGLE:
        return f"it must be at least {SMALLEST_SINGLE:.7g}, the smallest number of single precision"
    return ""


def _number(value: float) -> str:
    return f"{int(value):,}" if value.is_integer() else repr(value)


def shown(value: object) -> str:
    """A refused value as messages show it: text in quotes and cut short, numbers as they are."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    return json.dumps(_cut(value), ensure_ascii=False) if isinstance(value, str) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."
