"""Bounds on the gradient as a record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from lockstep.contract.errors import Violation
from lockstep.v1.optimization_pb2 import Optimizer


@final
@dataclass(frozen=True, slots=True)
class ClippingRecord:
    """Each element into +-value, or the whole gradient times min(1, global_norm / norm); 0 means that there is no bound."""

    value: float = 0.0
    global_norm: float = 0.0


def clipping_record(optimizer: Optimizer) -> ClippingRecord:
    """The bounds that come with an optimizer, none where it has no clipping."""
    return ClippingRecord(optimizer.clipping.value, optimizer.clipping.global_norm)


def check_clipping(optimizer: Optimizer, wrong: list[Violation]) -> None:
    """Adds to `wrong` what a given clipping lacks: one bound, above 0 and finite."""
    if not optimizer.HasField("clipping"):
        return
    place, kind = "optimizer.clipping", optimizer.clipping.WhichOneof("kind")
    if kind is None:
        wrong.append(Violation(place, "", "exactly one bound must be given: global_norm, value"))
        return
    bound = getattr(optimizer.clipping, kind)
    if not (bound > 0 and math.isfinite(bound)):
        wrong.append(Violation(f"{place}.{kind}", str(bound), "it must be above 0 and finite"))
