"""Initializers as records: how a tensor is drawn before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from lockstep.contract.errors import Violation
from lockstep.v1.model_pb2 import Initializer
from worker.specs.records import Reading, given_or_default, none_given

# Activations that pass what is above zero and little below: He's variance suits them.
RECTIFIERS = frozenset({"relu", "leaky_relu", "elu", "silu", "gelu", "softplus"})


@final
@dataclass(frozen=True, slots=True)
class InitializerRecord:
    """`kind` is a key of `worker.nn.initializers.INITIALIZERS`; `value` is what it needs besides, or 0:
    the gain of "orthogonal", the standard deviation of "truncated_normal"."""

    kind: str
    value: float = 0.0


# Keys of worker.nn.initializers.INITIALIZERS that a job may name.
BUILT = ("glorot_uniform", "he_normal", "lecun_normal", "orthogonal", "truncated_normal", "zeros")

# The fields that some have.
_VALUES = {"orthogonal": "gain", "truncated_normal": "stddev"}


def read_initializer(given: Initializer | None, reading: Reading) -> InitializerRecord:
    """The record: as given, else he_normal before a rectifier and glorot_uniform before all else."""
    if given is None:
        return InitializerRecord("he_normal" if reading.follower in RECTIFIERS else "glorot_uniform")
    kind = given.WhichOneof("kind") or ""
    if kind not in BUILT:
        reading.wrong.append(none_given(f"{reading.place}.initializer", "initializer", BUILT))
    if kind not in _VALUES:
        return InitializerRecord(kind)
    field = _VALUES[kind]
    value = given_or_default(getattr(given, kind), field)
    if not (value > 0 and math.isfinite(value)):
        place = f"{reading.place}.initializer.{kind}.{field}"
        reading.wrong.append(Violation(place, str(value), "it must be above 0 and finite", "INVALID_FIELD"))
    return InitializerRecord(kind, value)
