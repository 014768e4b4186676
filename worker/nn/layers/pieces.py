"""How a stack is cut into pieces that stay in cache while several operations run over each."""

from __future__ import annotations

# Half a dozen arrays of a piece, what is made of it and factors spread out to it, lie in the second-level cache together.
PIECE_FLOATS = 1 << 15


def cuts(length: int, size: int) -> list[slice]:
    """The range from 0 to `length` in pieces of `size`, at least 1; the last may be shorter."""
    size = max(size, 1)
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


def shard_groups(shards: int, shard_floats: int) -> list[slice]:
    """The shards in groups of about one piece, or one by one where a shard is larger."""
    return cuts(shards, PIECE_FLOATS // shard_floats)
