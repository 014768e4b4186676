"""Hypothesis strategies for any message, made from its descriptor: valid on the wire, whatever the rules say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from lockstep.contract.rules import map_value

DEPTH = 4
WORDS = st.one_of(
    st.text(max_size=8), st.sampled_from(["digits", "datasets/digits", "jobs/a", "a" * 300, "\0", "datasets/digits@ffffffff"])
)
EDGES = (0, 1, 2, 64, 128, 2**31 - 1, 2**32 - 1, 2**63 - 1)


def _whole(low: int, high: int) -> st.SearchStrategy[int]:
    return st.one_of(st.sampled_from([edge for edge in EDGES if low <= edge <= high]), st.integers(low, high))


SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_DOUBLE: st.one_of(st.sampled_from([0.0, -0.0, 0.2, 1.0, 5e-324]), st.floats()),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: _whole(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: _whole(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: _whole(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: _whole(0, 2**64 - 1),
    FieldDescriptor.TYPE_ENUM: st.integers(-1, 12),
    FieldDescriptor.TYPE_STRING: WORDS.filter(lambda text: text.isprintable() or text == "\0"),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
}


def messages(descriptor: Descriptor, depth: int = DEPTH) -> st.SearchStrategy[Message]:
    """Messages of a type, with some of their fields set."""
    return st.builds(
        _build, st.just(GetMessageClass(descriptor)), st.fixed_dictionaries({}, optional=_fields(descriptor, depth))
    )


def _fields(descriptor: Descriptor, depth: int) -> dict[str, st.SearchStrategy[Any]]:
    found: dict[str, st.SearchStrategy[Any]] = {}
    for field in descriptor.fields:
        if field.message_type is not None and (depth == 0 or field.message_type.full_name.startswith("google.")):
            continue
        if map_value(field) is not None:
            found[field.name] = st.dictionaries(WORDS.filter(str.isprintable), WORDS.filter(str.isprintable), max_size=2)
            continue
        one = SCALARS[field.type] if field.message_type is None else messages(field.message_type, depth - 1)
        found[field.name] = st.lists(one, max_size=3) if field.is_repeated else one
    return found


def _build(make: Callable[..., Message], values: dict[str, Any]) -> Message:
    """Sets the fields one after the other: of a choice, the last remains."""
    message = make()
    for name, value in values.items():
        message.MergeFrom(make(**{name: value}))
    return message
