"""The numbers of a case: drawn from its name, with few digits, so that they are short in a file and exact in float64."""

from __future__ import annotations

import zlib

import numpy as np
import torch

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)


class Draw:
    """Numbers from a case's name: those of one case do not depend on the other cases."""

    def __init__(self, name: str) -> None:
        self.generator = np.random.default_rng(zlib.crc32(name.encode()))

    def spread(self, shape: tuple[int, ...], low: float = -2.0, high: float = 2.0) -> torch.Tensor:
        """Numbers evenly over an interval, shuffled: no two are equal, and none is where two halves of a function meet."""
        count = int(np.prod(shape))
        places = (self.generator.permutation(count) + 0.3) / count
        return torch.tensor(np.round(low + (high - low) * places, 4).reshape(shape))

    def whole(self, shape: tuple[int, ...], below: int) -> torch.Tensor:
        """Whole numbers from 0 to below a bound, as integers."""
        return torch.tensor(self.generator.integers(0, below, shape))


class Tensors:
    """A network's tensors by their public names, drawn where a layer first asks for them.

    `learned` have gradients; `state` are running statistics, and `updates` what each pass in training has made of them.
    """

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.learned: dict[str, torch.Tensor] = {}
        self.state: dict[str, torch.Tensor] = {}
        self.updates: dict[str, list[torch.Tensor]] = {}
        # The network's: attention finds padding in it.
        self.input = torch.zeros(0)

    def layer(self, prefix: str) -> Place:
        return Place(self, prefix)


class Place:
    """One layer's view of the tensors: `place("weight", 3, 4)` is its weight."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        self.tensors, self.prefix = tensors, prefix

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        name = f"{self.prefix}.{name}"
        if name not in self.tensors.learned:
            self.tensors.learned[name] = self.tensors.draw.spread(shape, -0.8, 0.8).requires_grad_()
        return self.tensors.learned[name]

    def state(self, name: str, size: int, low: float, high: float) -> torch.Tensor:
        name = f"{self.prefix}.{name}"
        if name not in self.tensors.state:
            self.tensors.state[name] = self.tensors.draw.spread((size,), low, high)
        return self.tensors.state[name]

    def update(self, name: str, value: torch.Tensor) -> None:
        self.tensors.updates.setdefault(f"{self.prefix}.{name}", []).append(value)
