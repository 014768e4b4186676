"""A snapshot: the state of a step, copied out of the workers' memory and held by the coordinator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray

from coordinator.recovery import Corrupted
from lockstep.contract.errors import InternalError
from worker.checksum import crc32c

Vector = NDArray[np.float32]
# ("velocity", first, end) and the floats of that range.
Parts = Mapping[tuple[str, int, int], Vector]


@final
@dataclass(frozen=True, slots=True)
class Snapshot:
    """The flat vectors (P,) after `step`: "parameters", and those of the optimizer; and the CRC-32C of each when copied."""

    step: int
    vectors: dict[str, Vector]
    checksums: dict[str, int] = field(default_factory=dict)

    @property
    def parameters(self) -> Vector:
        """The weights."""
        return self.vectors["parameters"]

    def check(self) -> None:
        """To be called before it is used, which may be long after it was copied. Raises Corrupted where it has changed."""
        for name, checksum in self.checksums.items():
            if (now := crc32c(self.vectors[name])) != checksum:
                raise Corrupted(
                    f"{name} in the snapshot of step {self.step} are not what was copied (CRC-32C {now:08x} instead of "
                    f"{checksum:08x}); the memory of the coordinator's node is not sound"
                )

    def not_finite(self) -> str:
        """The name of a vector with a number that is not finite, or nothing."""
        for name, vector in self.vectors.items():
            if not np.isfinite(vector).all():
                return name
        return ""


def assemble(step: int, size: int, names: Sequence[str], parts: Sequence[Parts]) -> Snapshot:
    """Puts the ranges that the workers answer for together; more workers than chunks have empty ones, which may be equal.

    Raises InternalError where a range is missing or stands twice.
    """
    ranges: dict[str, dict[tuple[int, int], Vector]] = {name: {} for name in names}
    for given in parts:
        for (name, first, end), values in given.items():
            if name not in ranges or (first, end) in ranges[name] or values.shape != (end - first,):
                raise InternalError(f"a worker offered {name}[{first}:{end}], which was not to be had from it")
            if first < end:
                ranges[name][first, end] = values
    vectors = {}
    for name, pieces in ranges.items():
        vector = np.empty(size, np.float32)
        at = 0
        for (first, end), values in sorted(pieces.items(), key=lambda item: item[0]):
            if first != at:
                raise InternalError(f"no worker, or more than one, offered {name} from {min(at, first)} on at step {step}")
            vector[first:end] = values
            at = end
        if at != size:
            raise InternalError(f"no worker offered {name} from {at} on at step {step}")
        vectors[name] = vector
    return Snapshot(step, vectors, {name: crc32c(vector) for name, vector in vectors.items()})
