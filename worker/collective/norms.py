"""The exchange of norms: every worker measures the blocks of its chunk, and every node gets the sums of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, final

from worker.collective.layout import ExchangeLayout
from worker.collective.plan import message_parts
from worker.collective.shared_memory import F64

# Of one pass: (peer, the parts of the message).
Messages: TypeAlias = Sequence[tuple[int, list[memoryview]]]


class Norms(Protocol):
    """What an update measures: sums of squares over blocks of the flat vector that no chunk divides."""

    @property
    def rows(self) -> Sequence[int]:
        """How many vectors are measured in each pass but the last."""
        ...

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        ...

    def range_of(self, first: int, end: int) -> tuple[int, int]:
        """The blocks that begin in [first, end) of the flat vector: the first one, and one past the last."""
        ...

    def share(self, sums: Sequence[F64]) -> None:
        """Where the sums lie from now on: (rows[number], blocks) for each pass."""
        ...


@final
class NormExchange:
    """What a worker sends and receives after each pass: its own blocks to its carriers, and those of the owners it carries.

    The sums lie in memory that the node shares: each worker writes those of its chunk and of the chunks that it carries.
    """

    def __init__(self, layout: ExchangeLayout, rank: int, sums: Sequence[F64], norms: Norms) -> None:
        norms.share(sums)
        blocks = [norms.range_of(*chunk) for chunk in layout.chunks]

        def messages(peers: Sequence[tuple[int, int]]) -> list[Messages]:
            """Of each pass, the blocks of `owner` with each (peer, owner); empty ones are left out."""
            made = [[(peer, message_parts(*rows[:, slice(*blocks[owner])])) for peer, owner in peers] for rows in sums]
            return [[(peer, parts) for peer, parts in of_pass if parts] for of_pass in made]

        self.outgoing = messages([(carrier, rank) for carrier in layout.carriers(rank)])
        self.incoming = messages([(owner, owner) for owner in layout.carried(rank)])
