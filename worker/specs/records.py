"""What all records have in common, and the reading of messages into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, final

from google.protobuf.message import Message

from lockstep.contract.errors import Violation
from lockstep.contract.rules import written_default
from lockstep.v1.model_pb2 import Layer


class LayerRecord:
    """A layer without NumPy or protobuf: frozen, comparable, hashable. `kind` is its key in a job file.

    `batch_statistics` says whether it takes statistics over the rows of a shard, which then must not be few.
    """

    __slots__ = ()
    kind: ClassVar[str]
    batch_statistics: ClassVar[bool] = False


class LossRecord:
    """A loss without NumPy or protobuf. `kind` is its key in a job file."""

    __slots__ = ()
    kind: ClassVar[str]


class ScheduleRecord:
    """A schedule without NumPy or protobuf. `kind` is its key in a job file; `warmup_steps` come before it."""

    __slots__ = ()
    kind: ClassVar[str]
    warmup_steps: int


class OptimizerRecord:
    """An optimizer without NumPy or protobuf. `kind` is its key in a job file; `state_names` are the vectors it remembers."""

    __slots__ = ()
    kind: ClassVar[str]
    state_names: ClassVar[tuple[str, ...]] = ()
    learning_rate: float
    schedule: ScheduleRecord


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


def given_or_default(message: Message, name: str) -> Any:
    """The value of a field, or the default that its rule writes down, where it is not set."""
    if message.HasField(name):
        return getattr(message, name)
    return written_default(message.DESCRIPTOR.fields_by_name[name])


def none_given(place: str, what: str, choices: Iterable[str]) -> Violation:
    """A choice of which nothing was chosen."""
    return Violation(place, "", f"exactly one {what} must be given: {', '.join(sorted(choices))}", "INVALID_FIELD")
