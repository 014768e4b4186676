"""The digests of what is asked: of what decides a job's weights, and of whole requests."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from lockstep.contract.rules import REALS, map_value
from lockstep.v1 import job_spec_pb2

# The fields of a JobSpec that decide the weights. `evaluation` joins them where a controller acts on evaluations.
DECIDING_FIELDS = ("validation_fraction", "preprocessing", "model", "loss", "optimizer", "training", "non_finite")


def arithmetic_digest(spec: job_spec_pb2.JobSpec, dataset_digest: str, arithmetic_version: int) -> str:
    """SHA-256, in hex, of what decides the weights, of a spec whose defaults are filled in.

    It is taken over compact JSON with sorted keys. Unset fields and zeros without presence are left out, so that a new field
    changes no old digest; real numbers are doubles. Raises ValueError for a number that is not finite.
    """
    parts: dict[str, Any] = {"arithmetic_version": arithmetic_version, "dataset_digest": dataset_digest}
    fields = (*DECIDING_FIELDS, "evaluation") if uses_controller(spec) else DECIDING_FIELDS
    whole = canonical(spec)
    for name in fields:
        # An empty message at the top says nothing: `preprocessing: {}` is no preprocessing.
        if name in whole and whole[name] != {}:
            parts[name] = whole[name]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def uses_controller(spec: job_spec_pb2.JobSpec) -> bool:
    """Whether something in the job acts on its evaluations, so that their steps decide the weights."""
    return spec.optimizer.schedule.WhichOneof("kind") == "plateau"


def request_digest(message: Message) -> str:
    """SHA-256, in hex, of a request's type and content: equal for equal requests, whatever the order of their map entries."""
    body = message.SerializeToString(deterministic=True)
    return hashlib.sha256(message.DESCRIPTOR.full_name.encode("ascii") + b"\0" + body).hexdigest()


def canonical(message: Message) -> dict[str, Any]:
    """A message as JSON values: proto field names, doubles as floats, whole numbers as ints, enum values by name."""
    values: dict[str, Any] = {}
    for field, value in message.ListFields():
        if (entry := map_value(field)) is not None:
            values[field.name] = {str(key): _scalar(entry, value[key]) for key in value}
        elif field.is_repeated:
            values[field.name] = [_scalar(field, item) for item in value]
        elif field.has_presence or value:  # -0.0 without presence is listed, but says what 0 says
            values[field.name] = _scalar(field, value)
    return values


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Message):
        return canonical(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return float(value) + 0.0 if field.type in REALS else value  # + 0.0 turns -0.0 into 0.0
