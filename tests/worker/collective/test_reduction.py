"""The reduction over links in memory: bit for bit the plain tree sum, however workers and nodes are split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.worker.collective.memory_group import (
    Group,
    Keep,
    cases,
    plain_sum,
    sums_any_number_of_shards,
    take_turns,
    takes_plain_steps,
)
from tests.worker.nn.networks import dense_net
from worker.collective.shared_memory import F32, REPORT_FLOATS
from worker.nn.norms import Norms
from worker.nn.shapes import parameter_layout
from worker.nn.update import Update as RealUpdate
from worker.specs import ClippingRecord, ConstantSchedule, LambRecord, MomentumRecord, OptimizerRecord, PenaltyRecord


@pytest.fixture(autouse=True)
def threads_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    take_turns(monkeypatch)


@pytest.mark.parametrize(("seed", "workers", "shards", "node_count"), cases())
def test_parameters_and_state_are_those_of_the_plain_tree_sum(seed: int, workers: int, shards: int, node_count: int) -> None:
    draw = np.random.default_rng(seed)
    nodes = [f"node-{draw.integers(node_count)}" for _ in range(workers)]
    if seed % 2:
        nodes.sort()
    size = 16 * int(draw.integers(1, 900))
    takes_plain_steps([Group(nodes, shards, size)], draw)


@pytest.mark.parametrize("nodes", ["aab", "abb", "aabb", "abbb", "aba", "abab", "aaabc", "abc"])
def test_any_number_of_shards_with_rows_gives_the_plain_tree_sum(nodes: str) -> None:
    """Also where a single worker of a node has rows, whose sum stands for a subtree that the node would else add up."""
    sums_any_number_of_shards(Group(nodes, 8, 5 * 4096, Keep))


def test_blocks_longer_than_the_cache_give_the_same_bits() -> None:
    size, draw = 3 * 65536 + 16 * 77, np.random.default_rng(1)
    group = Group(["a", "a", "b"], 5, size)
    gradients = [draw.normal(size=size).astype(np.float32) for _ in range(5)]
    group.step(1, 5, gradients, [0.0] * 5, [True] * 3)
    total = plain_sum(0, 5, gradients, 5)
    assert total is not None
    expected = np.zeros(size, np.float32) - np.float32(0.5) * (total / np.float32(5))
    assert all(node.tobytes() == expected.tobytes() for node in group.parameters.values())


@pytest.mark.parametrize("nodes", [["a", "a", "a"], ["a", "b", "c"], ["a", "b", "b"]])
@pytest.mark.parametrize("victim", [0, 2])
def test_one_flag_keeps_every_worker_from_the_update(nodes: list[str], victim: int) -> None:
    group = Group(nodes, 4, 64)
    gradients = [np.ones(64, np.float32)] * 4
    results = group.step(1, 4, gradients, [1.0] * 4, [rank != victim for rank in range(3)])
    assert not any(result.finite for result in results)
    assert not any(node.any() for node in group.parameters.values())
    results = group.step(2, 4, gradients, [1.0] * 4, [True] * 3)
    assert all(result.finite for result in results) and all(node.all() for node in group.parameters.values())


def test_negative_zero_survives_an_empty_shard() -> None:
    group = Group(["a", "b"], 4, 16, Keep)
    group.step(1, 1, [np.full(16, -0.0, np.float32)] * 4, [0.0] * 4, [True, True])
    assert np.signbit(np.concatenate([state for (state,) in group.states.values()])).all()


def test_each_vector_and_each_parameter_crosses_once() -> None:
    size = 4 * 4096
    group = Group(["a", "a", "b", "b"], 8, size)
    group.step(1, 8, [np.ones(size, np.float32)] * 8, [0.0] * 8, [True] * 4)
    report = 8 * REPORT_FLOATS
    for rank in range(4):
        # half of the own node's sums for the other node's chunks, and the own chunk's parameters
        assert group.network.bytes_sent[rank] == report + 4 * (size // 4) + 4 * (size // 4)
        assert group.network.messages_sent[rank] == 2


def test_the_sums_of_state_are_divided_by_rows() -> None:
    """By the rows of the batch, 10 for each shard here, and not by the denominator."""

    class Halves(Keep):
        cuts = (32,)
        learned = 32

    group = Group(["a", "a", "b"], 4, 64, Halves)
    group.step(1, 4, [np.full(64, 3, np.float32)] * 4, [0.0] * 4, [True] * 3)
    kept = np.concatenate([group.states[rank][0] for rank in range(3)])
    assert kept.tolist() == [3.0] * 32 + [np.float32(12 / 40)] * 32


def test_a_missing_worker_is_named() -> None:
    group = Group(["a", "b"], 2, 16)
    group.reductions[0]._deadlines.seconds = 0.05
    with pytest.raises(Exception, match="worker 1 did not reach step 7"):
        group.reductions[0].step(2, 2, 7, 0.1, True, [0.0], [1.0])


# Weights of 9,600, 30,000 and 800 floats, their biases, and gaps; the blocks of a norm are 4,096 floats at most.
LAYOUT = parameter_layout(dense_net([100, 300, 4], inputs=(96,)))
TENSORS = [(entry.offset, entry.offset + entry.size) for entry in LAYOUT.entries]
LAMB = LambRecord(0.5, 0.9, 0.99, 1e-6, 0.1, ConstantSchedule())
MOMENTUM = MomentumRecord(0.5, 0.9, ConstantSchedule())


def drawn(seed: int) -> F32:
    """A vector with zeros in its gaps."""
    vector, draw = np.zeros(LAYOUT.size, np.float32), np.random.default_rng(seed)
    for first, end in TENSORS:
        vector[first:end] = draw.normal(size=end - first)
    return vector


def three_steps(nodes: Sequence[str], record: OptimizerRecord, clipping: ClippingRecord) -> tuple[Group, bytes]:
    """A group after three steps, one of them with empty shards, and all its bits."""

    def make() -> RealUpdate:
        return RealUpdate(record, PenaltyRecord(0.01, 0.02), LAYOUT, clipping)

    group = Group(nodes, 5, LAYOUT.size, make, TENSORS, len(record.state_names))
    for node in group.parameters.values():
        node[:] = drawn(99)
    for step, filled in enumerate((5, 5, 2), start=1):
        gradients = [drawn(10 * step + shard) for shard in range(5)]
        results = group.step(step, filled, gradients, [1.0] * 5, [True] * len(nodes))
        assert all(result.finite for result in results)
    # A difference in the last bit of a float64 norm seldom shows in the float32 parameters: its sums are compared as well, and
    # what each worker makes of them.
    shared = {
        group.parameters[node].tobytes()
        + b"".join(sums.tobytes() for sums in reduction._memory.norms)
        + repr(totals(reduction._update.norms)).encode()
        for node, reduction in zip(nodes, group.reductions, strict=True)
    }
    assert len(shared) == 1, "norms by the number of workers"
    states = [np.concatenate(chunks) for chunks in zip(*(group.states[rank] for rank in range(len(nodes))), strict=True)]
    return group, shared.pop() + b"".join(state.tobytes() for state in states)


def totals(norms: object) -> list[float]:
    """The sums of squares over all tensors and over each, as a worker adds them up; nothing where it has no norms."""
    if not isinstance(norms, Norms):
        return []
    rows = [(number, row) for number, count in enumerate(norms.rows) for row in range(count)]
    by_tensor = [norms.tensor_total(*row, tensor) for row in rows for tensor in range(len(TENSORS))]
    return [norms.total(*row) for row in rows] + by_tensor


@pytest.mark.parametrize(
    ("record", "clipping", "passes"),
    [
        (MOMENTUM, ClippingRecord(value=0.5), 1),
        (MOMENTUM, ClippingRecord(global_norm=2.0), 2),
        (LAMB, ClippingRecord(value=0.5), 2),
        (LAMB, ClippingRecord(global_norm=2.0), 3),
    ],
)
def test_norms_give_the_same_bits_on_any_number_of_workers_and_nodes(
    record: OptimizerRecord, clipping: ClippingRecord, passes: int
) -> None:
    found = set()
    for nodes in ("a", "aa", "ab", "aab", "aba", "abc", "abbb", "aaaaa", "aabbc", "abcab"):
        group, bits = three_steps(nodes, record, clipping)
        found.add(bits)
        many = len(set(nodes)) > 1
        for reduction in group.reductions:
            assert reduction._barrier._phase == 3 * (1 + passes)  # one more barrier for each pass
        if many and len(nodes) == len(set(nodes)):  # to each other node: sums, norms of each pass, parameters
            assert set(group.network.messages_sent.values()) == {3 * (len(nodes) - 1) * (1 + passes)}
    assert len(found) == 1, "norms by the number of workers"


def test_sums_by_rank_would_give_other_bits() -> None:
    found = set()
    for workers in range(1, 6):
        group, _ = three_steps("a" * workers, MOMENTUM, ClippingRecord(global_norm=2.0))
        (sums,) = group.reductions[0]._memory.norms
        norms = group.reductions[0]._update.norms
        assert norms is not None and sums.all()
        by_rank = [float(np.add.reduce(sums[0, slice(*norms.range_of(*chunk))])) for chunk in group.layout.chunks]
        found.add(sum(by_rank))
    assert len(found) > 1


def test_one_flag_keeps_every_worker_from_every_pass() -> None:
    def make() -> RealUpdate:
        return RealUpdate(LAMB, PenaltyRecord(0, 0), LAYOUT, ClippingRecord(global_norm=1.0))

    group = Group("aab", 4, LAYOUT.size, make, TENSORS, 2)
    results = group.step(1, 4, [drawn(1)] * 4, [1.0] * 4, [True, False, True])
    assert not any(result.finite for result in results)
    assert not any(vector.any() for vectors in group.states.values() for vector in vectors)
    assert all(result.finite for result in group.step(2, 4, [drawn(1)] * 4, [1.0] * 4, [True] * 3))
    assert all(node.any() for node in group.parameters.values())
