"""How the gates of a recurrent layer stand in memory: gate by gate for elementwise operations, shard by shard for products."""

from __future__ import annotations

from worker.nn.parameters import Array


def by_shard(gates: Array, scratch: Array) -> tuple[Array, Array]:
    """Where the gates (K, S, H, R) of a group stand shard by shard, as a product takes them, (S, K H, R); and that as
    (K, S, H, R). It lies in `scratch`; one shard's is the same memory either way."""
    count, size, units, rows = gates.shape
    flat = gates.reshape(-1) if size == 1 else scratch[: gates.size]
    return flat.reshape(size, count * units, rows), flat.reshape(size, count, units, rows).transpose(1, 0, 2, 3)
