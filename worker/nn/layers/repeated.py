"""The sum of an activation and what is the same at each of its places."""

from __future__ import annotations

from typing import final

import numpy as np

from worker.nn.layers.layer import Memory
from worker.nn.parameters import Array
from worker.nn.shapes import BLOCK_FLOATS


@final
class Repeated:
    """Adds `values`, of M numbers, to each of `count` places: x (count, M), in the forward pass.

    The values are spread out over a block of places first; NumPy would do so itself, into memory that it allocates.
    """

    def __init__(self, values: Array, count: int, memory: Memory) -> None:
        self.values = values.reshape(-1)
        self.count = count
        self.step = min(count, max(1, BLOCK_FLOATS // 4 // self.values.size))
        self.spread = memory.forward_scratch((self.step, self.values.size))

    def add(self, x: Array, out: Array) -> None:
        """out = x + values; out may be x."""
        np.copyto(self.spread, self.values)
        for first in range(0, self.count, self.step):
            last = min(first + self.step, self.count)
            np.add(x[first:last], self.spread[: last - first], out=out[first:last])
