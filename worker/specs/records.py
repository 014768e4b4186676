"""What all records have in common, and the reading of messages into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, final

from lockstep.contract.errors import Violation
from lockstep.v1.model_pb2 import Layer


class LayerRecord:
    """A layer without NumPy or protobuf: frozen, comparable, hashable. `kind` is its key in a job file."""

    __slots__ = ()
    kind: ClassVar[str]


class LossRecord:
    """A loss without NumPy or protobuf. `kind` is its key in a job file."""

    __slots__ = ()
    kind: ClassVar[str]


class OptimizerRecord:
    """An optimizer without NumPy or protobuf. `kind` is its key in a job file; `schedule` is a schedule's record; `states` is
    how many vectors it remembers."""

    __slots__ = ()
    kind: ClassVar[str]
    states: ClassVar[int] = 0
    learning_rate: float
    schedule: Any


@final
@dataclass(slots=True)
class Reading:
    """Where a message is read. `place` is "model.layers[2].conv2d"; what is wrong is added to `wrong`.

    `follower` is the kind of the activation that is next behind this layer, normalizations, pooling and dropout passed over;
    empty if there is none.
    """

    place: str
    follower: str
    wrong: list[Violation]

    def refuse(self, field: str, value: object, remedy: str, reason: str = "INVALID_FIELD") -> None:
        """Adds a violation at a field of this message."""
        self.wrong.append(Violation(f"{self.place}.{field}" if field else self.place, str(value), remedy, reason))


# From a layer's message to its record.
LayerReader: TypeAlias = Callable[[Layer, Reading], LayerRecord]


def not_one_of(place: str, what: str, kind: str, built: Iterable[str]) -> Violation:
    """A choice of which nothing was chosen, or something that is not built yet."""
    names = ", ".join(sorted(built))
    if not kind:
        return Violation(place, "", f"exactly one {what} must be given: {names}", "INVALID_FIELD")
    reason = f"{what.upper()}_NOT_BUILT"
    return Violation(f"{place}.{kind}", "", f"this {what} is not built yet; use one of: {names}", reason)
