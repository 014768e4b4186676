"""Whole networks of every kind of layer: the chain rule, shards as stacks, both precisions, and no allocation in a step."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from lockstep.contract.arithmetic import shard_rows
from tests.worker.nn.allocations import peak_bytes
from tests.worker.nn.test_stacks import bits, node, shifted, subtrees
from tests.worker.nn.zoo import ZOO, Animal
from worker.nn.gradient_check import check_gradients
from worker.nn.layers import LAYERS
from worker.nn.losses import LOSSES
from worker.nn.shapes import PROCESS_BYTES, flattened, layer_shapes, worker_memory_bytes
from worker.nn.shapes.memory import SCRATCH_FLOATS
from worker.nn.streams import Streams
from worker.specs import ParallelRecord, ResidualRecord

NAMES = pytest.mark.parametrize("name", ZOO)


def test_every_layer_and_loss_is_in_the_zoo() -> None:
    kinds = {type(layer.record) for animal in ZOO.values() for layer in flattened(layer_shapes(animal.architecture))}
    assert kinds == {*LAYERS, ResidualRecord, ParallelRecord}
    assert {type(animal.loss_record) for animal in ZOO.values()} == set(LOSSES)


@NAMES
def test_the_chain_rule(name: str) -> None:
    animal, rng = ZOO[name], np.random.default_rng(3)
    stacks = [animal.draw(rng, shards, rows, np.float64) for shards, rows in ((2, 4), (1, 3))]
    checks = check_gradients(animal.architecture, animal.loss_record, stacks, seed=2, samples=40, streams=Streams(2, 1, 0))
    assert {check.name: check.worst_relative_error for check in checks if check.worst_relative_error > 1e-6} == {}


@NAMES
def test_uneven_shards_as_stacks_are_each_shard_alone(name: str) -> None:
    """7 shards of 38 rows, in any grouping, at any place in memory: bit for bit what each gives alone, summed by the tree."""
    animal = ZOO[name]
    x, y = animal.draw(np.random.default_rng(4), 1, 38)
    ranges = shard_rows(38, 7)
    fresh = animal.model(seed=5)
    shards = []
    for number, (a, b) in enumerate(ranges):
        result = fresh.loss_and_gradient([(x[:, a:b].copy(), y[:, a:b].copy())], streams=Streams(5, 9, number))
        shards.append((fresh.gradients[0].copy(), result.loss_sum))
    for lo, hi, offset in ((0, 7, 0), (0, 3, 1), (3, 7, 5), (2, 5, 16), (6, 7, 3)):
        mine = ranges[lo:hi]
        stacks = []
        for size in sorted({b - a for a, b in mine}, reverse=True):
            rows = [slice(a, b) for a, b in mine if b - a == size]
            stacks.append(tuple(shifted(np.stack([part[0, r] for r in rows]), offset) for part in (x, y)))
        combine = tuple((a - lo, b - lo) for a, b in subtrees(0, 7, lo, hi))
        model = animal.model(
            parameters=shifted(fresh.parameters, offset),
            gradients=shifted(np.zeros((len(combine), fresh.layout.size), np.float32), offset),
            seed=5,
        )
        for _ in range(2):  # buffers are used again
            result = model.loss_and_gradient(stacks, combine, Streams(5, 9, lo))  # type: ignore[arg-type]
        for row, (first, end) in enumerate(combine):
            total = node(first, end, shards[lo:hi])
            assert total is not None
            assert bits(model.gradients[row]) == bits(total[0])
            assert result.loss_sums[row] == total[1]


@NAMES
def test_float32_gradients_agree_with_float64(name: str) -> None:
    animal = ZOO[name]
    x, y = animal.draw(np.random.default_rng(6), 2, 8)
    single, double = animal.model(seed=1), animal.model(seed=1, dtype=np.float64)
    double.parameters[...] = single.parameters
    streams = Streams(1, 1, 0)
    single.loss_and_gradient([(x, y)], streams=streams)
    double.loss_and_gradient([(x.astype(np.float64), y.astype(double.target_dtype))], streams=streams)
    for tensor, wide in double.named_gradients().items():
        error = np.abs(single.named_gradients()[tensor] - wide).max() / max(float(np.abs(wide).max()), 1e-3)
        assert error < 2e-5, tensor


@NAMES
@pytest.mark.parametrize(("shards", "rows"), [(1, 24), (4, 50), (3, 2)])
def test_a_step_allocates_nothing_after_the_first(name: str, shards: int, rows: int) -> None:
    """Words of random streams apart, which come in blocks of at most 64 KiB."""
    animal = ZOO[name]
    stack, model, streams = animal.draw(np.random.default_rng(1), shards, rows), animal.model(), Streams(0, 1, 0)
    for _ in range(2):
        model.loss_and_gradient([stack], streams=streams)
    peak = peak_bytes(lambda: model.loss_and_gradient([stack], streams=streams))
    assert peak < 8192 + (65536 if "dropout" in str(animal.layers) else 0)


# Losses over much, whose buffers count.
WIDE = {
    f"{kind} {options} of {words}": Animal((6,), layers, {kind: options})
    for words, layers, kinds in (
        (
            "1,000 outputs",
            [{"dense": {"units": 1000}}],
            ("mean_squared_error", "mean_absolute_error", "huber", "binary_cross_entropy", "softmax_cross_entropy"),
        ),
        (
            "600 positions",
            [{"dense": {"units": 600}}, {"reshape": {"shape": [600, 1]}}, {"dense": {"units": 3}}],
            ("softmax_cross_entropy",),
        ),
    )
    for kind in kinds
    for options in ([{}, {"ignored_label": 0}] if kind == "softmax_cross_entropy" else [{}])
}


@pytest.mark.parametrize("animal", [*ZOO.values(), *WIDE.values()], ids=[*ZOO, *WIDE])
def test_the_estimate_of_memory_is_true(animal: Animal) -> None:
    stack = animal.draw(np.random.default_rng(1), 4, 64)
    tracemalloc.start()
    model = animal.model()
    model.loss_and_gradient([stack], streams=Streams(0, 1, 0))
    model.predict(stack[0][0])
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    sizes = {"batch_size": 256, "shards": 4, "workers": 1, "optimizer_states": 0}
    estimate = worker_memory_bytes(animal.architecture, animal.loss_record, **sizes)
    estimate -= PROCESS_BYTES + 4 * SCRATCH_FLOATS  # small networks use none of either
    # It counts the buffers of a short batch, which are not made here.
    assert held < estimate < 8 * held
