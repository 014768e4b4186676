"""A stack of shards == a loop over them, bitwise: any sizes, any grouping, any place in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.contract.arithmetic import shard_rows
from lockstep.contract.errors import InternalError
from tests.worker.nn.networks import CROSS_ENTROPY, SQUARES, dense_net, draw_stack
from worker.nn.combination import Subtree
from worker.nn.model import Model, Stack
from worker.nn.parameters import Array
from worker.specs import Architecture, LossRecord


def alone(architecture: Architecture, loss: LossRecord, x: Array, y: Array) -> tuple[Array, float]:
    """Gradient and loss sum of one shard, computed by a model of its own."""
    model = Model(architecture, loss, seed=5)
    result = model.loss_and_gradient([(x[None], y[None])])
    return model.gradients[0].copy(), result.loss_sum


def node(first: int, end: int, shards: Sequence[tuple[Array, float]]) -> tuple[Array, float] | None:
    """The tree's definition."""
    if end - first == 1:
        return shards[first] if first < len(shards) else None
    middle = (first + end) // 2
    left, right = node(first, middle, shards), node(middle, end, shards)
    if left is None or right is None:
        return left or right
    return left[0] + right[0], left[1] + right[1]


def subtrees(first: int, end: int, lo: int, hi: int) -> list[Subtree]:
    if lo <= first and end <= hi:
        return [(first, end)]
    if end <= lo or hi <= first:
        return []
    middle = (first + end) // 2
    return subtrees(first, middle, lo, hi) + subtrees(middle, end, lo, hi)


def bits(x: Array) -> bytes:
    return np.ascontiguousarray(x).tobytes()


@pytest.fixture(params=[None, 600], ids=["whole weights", "tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of more than a few numbers are summed by themselves, those of more than 600 tile by tile."""
    if request.param is not None:
        monkeypatch.setattr("worker.nn.passes.BLOCK_FLOATS", 200)
        monkeypatch.setattr("worker.nn.combination.BLOCK_FLOATS", 200)
        monkeypatch.setattr("worker.nn.tiles.TILE_FLOATS", request.param)
        monkeypatch.setattr("worker.nn.tiles.TILE_ROWS", 8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("tiles")
@given(
    loss=st.sampled_from([CROSS_ENTROPY, SQUARES]),
    units=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    inputs=st.integers(1, 70),
    batch=st.integers(1, 60),
    shards=st.integers(1, 9),
    owned=st.tuples(st.integers(0, 8), st.integers(1, 9)),
    offset=st.integers(0, 15),
    seed=st.integers(0, 2**16),
)
def test_stacks_are_a_loop(
    loss: LossRecord,
    units: list[int],
    inputs: int,
    batch: int,
    shards: int,
    owned: tuple[int, int],
    offset: int,
    seed: int,
) -> None:
    architecture = dense_net(units, inputs=(inputs,))
    rng = np.random.default_rng(seed)
    x, y = draw_stack(rng, 1, batch, (inputs,), units[-1], loss)
    ranges = [(a, b) for a, b in shard_rows(batch, shards) if a < b]
    lo = min(owned[0], len(ranges) - 1)
    hi = max(lo + 1, min(owned[1], shards))

    # A worker that owns the shards [lo, hi): at most two stacks, in buffers anywhere in memory.
    mine = ranges[lo:hi]
    stacks: list[Stack] = []
    for size in sorted({b - a for a, b in mine}, reverse=True):
        rows = [slice(a, b) for a, b in mine if b - a == size]
        stacks.append((shifted(np.stack([x[0, r] for r in rows]), offset), shifted(np.stack([y[0, r] for r in rows]), offset)))
    combine = tuple((a - lo, b - lo) for a, b in subtrees(0, shards, lo, hi) if a < len(ranges))
    fresh = Model(architecture, loss, seed=5)
    model = Model(
        architecture,
        loss,
        parameters=shifted(fresh.parameters, offset),
        gradients=shifted(np.zeros((len(combine), fresh.layout.size), np.float32), offset),
    )
    for _ in range(2):  # buffers are used again
        result = model.loss_and_gradient(stacks, combine)

    expected = [alone(architecture, loss, x[0, a:b], y[0, a:b]) for a, b in mine]
    assert result.finite
    for row, (first, end) in enumerate(combine):
        total = node(first, end, expected)
        assert total is not None
        assert bits(model.gradients[row]) == bits(total[0])
        assert result.loss_sums[row] == total[1]
        assert result.denominators[row] == sum(b - a for a, b in mine[first:end])


def shifted(x: Array, floats: int) -> Array:
    """A copy that begins `floats` elements past a multiple of 64 bytes."""
    raw = np.zeros(x.nbytes + 64 + floats * x.itemsize, np.uint8)
    first = -raw.ctypes.data % 64 + floats * x.itemsize
    out = raw[first : first + x.nbytes].view(x.dtype).reshape(x.shape)
    out[...] = x
    return out


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
def test_any_workers_give_one_gradient(workers: int, tiles: None) -> None:
    """Large enough that spans are combined alone and in several blocks."""
    architecture = dense_net([300, 250, 10], inputs=(280,))
    rng = np.random.default_rng(0)
    x, y = draw_stack(rng, 1, 45, (280,), 10, CROSS_ENTROPY)
    ranges = shard_rows(45, 8)
    expected = node(0, 8, [alone(architecture, CROSS_ENTROPY, x[0, a:b], y[0, a:b]) for a, b in ranges])
    assert expected is not None
    known: dict[Subtree, tuple[Array, float]] = {}
    for rank in range(workers):
        lo, hi = rank * 8 // workers, (rank + 1) * 8 // workers
        model = Model(architecture, CROSS_ENTROPY, seed=5)
        sizes = sorted({b - a for a, b in ranges[lo:hi]}, reverse=True)
        stacks = [
            (
                np.stack([x[0, a:b] for a, b in ranges[lo:hi] if b - a == size]),
                np.stack([y[0, a:b] for a, b in ranges[lo:hi] if b - a == size]),
            )
            for size in sizes
        ]
        nodes = subtrees(0, 8, lo, hi)
        result = model.loss_and_gradient(stacks, [(a - lo, b - lo) for a, b in nodes])
        known.update({at: (model.gradients[row].copy(), result.loss_sums[row]) for row, at in enumerate(nodes)})

    def joined(first: int, end: int) -> tuple[Array, float]:
        if (first, end) in known:
            return known[first, end]
        left, right = joined(first, (first + end) // 2), joined((first + end) // 2, end)
        return left[0] + right[0], left[1] + right[1]

    total = joined(0, 8)
    assert bits(total[0]) == bits(expected[0])
    assert total[1] == expected[1]


def test_empty_shards_are_left_out() -> None:
    """Five rows in eight shards: node (4, 8) is shard 4, so (0, 8) is not the tree over five."""
    architecture = dense_net([4], inputs=(3,))
    x, y = draw_stack(np.random.default_rng(3), 5, 1, (3,), 4, CROSS_ENTROPY)
    shards = [alone(architecture, CROSS_ENTROPY, x[s], y[s]) for s in range(5)]
    model = Model(architecture, CROSS_ENTROPY, seed=5)
    model.loss_and_gradient([(x, y)], [(0, 8)])
    g = [gradient for gradient, _ in shards]
    assert bits(model.gradients[0]) == bits(((g[0] + g[1]) + (g[2] + g[3])) + g[4])


@pytest.mark.parametrize("nodes", [[(0, 2)], [(1, 4)], [(0, 2), (3, 4)], [(0, 4), (4, 8)], [(0, 2), (2, 2), (2, 4)]])
def test_nodes_must_cover_the_shards(nodes: list[Subtree]) -> None:
    model = Model(dense_net([4], inputs=(3,)), CROSS_ENTROPY)
    stack = draw_stack(np.random.default_rng(3), 4, 2, (3,), 4, CROSS_ENTROPY)
    with pytest.raises(InternalError, match="do not cover 4 shards"):
        model.loss_and_gradient([stack], nodes)


def test_a_number_in_a_tile_that_is_not_finite_is_seen(tiles: None) -> None:
    architecture = dense_net([300, 250, 10], inputs=(280,))
    x, y = draw_stack(np.random.default_rng(0), 2, 4, (280,), 10, CROSS_ENTROPY)
    model = Model(architecture, CROSS_ENTROPY, seed=5)
    assert model.loss_and_gradient([(x, y)]).finite
    x[1, 2, 7] = np.inf
    with np.errstate(all="ignore"):
        assert not model.loss_and_gradient([(x, y)]).finite
        place = model.locate_non_finite([(x, y)])
    assert place is not None and (place.layer, place.shard, place.where) == ("layers[0].dense", 1, "input")


def test_the_shard_of_a_tile_that_overflows_is_found(tiles: None) -> None:
    model = Model(dense_net([300], inputs=(280,)), SQUARES)
    model.parameters.fill(0)
    x, y = draw_stack(np.random.default_rng(0), 4, 4, (280,), 300, SQUARES)
    x[2, :, 7], y[2] = 3e38, 1e15
    with np.errstate(all="ignore"):
        assert not model.loss_and_gradient([(x, y)]).finite
        place = model.locate_non_finite([(x, y)])
    assert place is not None and (place.layer, place.shard) == ("layers[0].dense", 2)
    assert (place.where, place.rows) == ("gradient of the parameters", ())
