"""The random streams of one step: what a layer that draws is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from worker.randomness import Purpose, Stream


@final
@dataclass(slots=True)
class Streams:
    """Streams of step `step` for the shards from `first_shard` on."""

    seed: int
    step: int
    first_shard: int

    def stream(self, purpose: Purpose, layer: int, shard: int) -> Stream:
        """The stream of a layer for the `shard`-th of these shards."""
        return Stream(self.seed, purpose, layer=layer, shard=self.first_shard + shard, time=self.step)

    def after(self, shards: int) -> Streams:
        """The streams without the first `shards`."""
        return Streams(self.seed, self.step, self.first_shard + shards)
