"""What the scalars of a job file mean: the type of the field decides, whether the text stands in quotes or not."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from lockstep.contract import rules
from lockstep.contract.errors import Violation
from lockstep.yaml_nodes import ScalarNode

# Longest text that is read as a number.
MAX_NUMBER_CHARACTERS = 64

WHOLE_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
REAL_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
NOT_FINITE = re.compile(r"([+-]?)\.?(nan|inf|infinity)", re.IGNORECASE)
LEADING_ZERO = re.compile(r"[+-]?0[0-9_]+")

BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
NULLS = frozenset({"", "~", "null", "Null", "NULL"})

UNSIGNED = frozenset({FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64})
WIDE = frozenset({FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64})


def value_of(field: FieldDescriptor, text: str) -> tuple[Any, str]:
    """What a field of this type makes of a text, or why it makes nothing."""
    if field.enum_type is not None:
        names = [value.name for value in field.enum_type.values if value.number]
        if text in names:
            return field.enum_type.values_by_name[text].number, ""
        return None, f"it must be one of {', '.join(names)}"
    if field.type == FieldDescriptor.TYPE_STRING:
        # A path of the proto cannot hold half a pair; JSON writes characters beyond U+FFFF as two.
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if field.full_name == "lockstep.v1.JobSpec.dataset" and "/" not in whole:
            whole = f"datasets/{whole}"
        return whole, ""
    if field.type == FieldDescriptor.TYPE_BOOL:
        return (BOOLEANS[text], "") if text in BOOLEANS else (None, "it must be true or false")
    if LEADING_ZERO.fullmatch(text):
        return None, "a number must not begin with a zero: it could mean two things"
    short = len(text) <= MAX_NUMBER_CHARACTERS
    if field.type in rules.REALS:
        if short and (match := NOT_FINITE.fullmatch(text)):
            return float(match[1] + match[2]), ""  # refused by the rules, with the bound
        return (float(text), "") if short and REAL_NUMBER.fullmatch(text) else (None, "it must be a number")
    return (int(text), "") if short and WHOLE_NUMBER.fullmatch(text) else (None, "it must be a whole number, written in digits")


def too_wide(field: FieldDescriptor, value: int) -> list[Violation]:
    """What is wrong with a whole number that the field's type cannot hold."""
    bits = 64 if field.type in WIDE else 32
    lowest, highest = (0, 2**bits - 1) if field.type in UNSIGNED else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if lowest <= value <= highest:
        return []
    bound = f"it must be at least {lowest:,}" if value < lowest else f"it must be at most {highest:,}"
    return [Violation("", "", bound, "FIELD_OUT_OF_RANGE")]


def is_null(node: ScalarNode) -> bool:
    """Whether a scalar is empty or null; in quotes it is text."""
    return node.style is None and node.value in NULLS
