"""What a job gives where nothing goes wrong, as one uninterrupted run of one worker found it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from tests.faults.simulation.arithmetic import F32


@final
@dataclass
class Reference:
    """The state behind each step, the curves, and the manifest of the last step; how many calls and acts it took."""

    states: dict[int, tuple[F32, F32]] = field(default_factory=dict)
    curves: dict[tuple[int, str], float] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    calls: int = 1
    acts: int = 1

    def learn(self, step: int, parameters: F32, velocity: F32) -> None:
        """Takes the state behind a step, unless it overflowed: then the step is taken again, and left out."""
        if _finite(parameters, velocity):
            self.states[step] = parameters.copy(), velocity.copy()

    def differs(self, step: int, parameters: F32, velocity: F32) -> bool:
        """Whether a state behind a step is another one."""
        known = self.states[step]
        same = np.array_equal(known[0], parameters) and np.array_equal(known[1], velocity)
        return not same and _finite(parameters, velocity)


def _finite(parameters: F32, velocity: F32) -> bool:
    return bool(np.isfinite(parameters).all() and np.isfinite(velocity).all())
