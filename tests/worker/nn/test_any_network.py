"""Whatever network is made up: the chain rule, shards as stacks, both precisions, and nothing left in memory by a step."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from lockstep.contract.arithmetic import shard_rows
from tests.worker.nn.any_network import Maker, draw_rows
from tests.worker.nn.test_stacks import bits, node, subtrees
from tests.worker.nn.zoo import Animal
from worker.nn.gradient_check import FLOAT32_TOLERANCE, TOLERANCE, GradientCheck
from worker.nn.layers import LAYERS
from worker.nn.model import Model, Stack
from worker.nn.shapes import flattened, layer_shapes
from worker.nn.streams import Streams

SEEDS = range(8)
ANIMALS_A_SEED = 8

# Memory of a step: Python's own numbers and views, by node; blocks of NumPy's iterators; words of a random stream.
NODE_BYTES, ITERATOR_BYTES, WORD_BYTES = 200, 40_000, 140_000


def made(seed: int) -> list[tuple[Animal, Model]]:
    """Networks, their parameters moved off the places where all is 0 or 1."""
    maker, rng, found = Maker(seed), np.random.default_rng(seed), []
    for _ in range(ANIMALS_A_SEED):
        animal = maker.animal()
        model = animal.model(seed=seed)
        for name, tensor in model.named_parameters().items():
            noise = rng.standard_normal(tensor.shape).astype(np.float32) / 5
            tensor += np.abs(noise) if name.endswith("running_variance") else noise
        found.append((animal, model))
    return found


def test_nearly_every_layer_is_made_up() -> None:
    kinds = {
        type(layer.record)
        for seed in SEEDS
        for animal, _ in made(seed)
        for layer in flattened(layer_shapes(animal.architecture))
    }
    assert set(LAYERS) <= kinds


@pytest.mark.parametrize("seed", SEEDS)
def test_backward_passes_are_derivatives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for animal, model in made(seed):
        stacks = [draw_rows(animal, model, rng, shards, rows) for shards, rows in ((2, 4), (1, 3))]
        check = GradientCheck(model, stacks, streams=Streams(2, 1, 0), samples=3)
        for number in range(len(check.tensors)):
            tensor = check.tensor(number)
            assert tensor.worst_relative_error < TOLERANCE, (tensor, animal)
            assert tensor.deviation < FLOAT32_TOLERANCE, (tensor, animal)


@pytest.mark.parametrize("seed", SEEDS)
def test_seven_uneven_shards_are_each_shard_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for animal, model in made(seed):
        x, y = draw_rows(animal, model, rng, 1, 17)
        ranges, shards = shard_rows(17, 7), []
        for number, (a, b) in enumerate(ranges):
            result = model.loss_and_gradient([(x[:, a:b].copy(), y[:, a:b].copy())], streams=Streams(5, 9, number))
            shards.append((model.gradients[0].copy(), result.loss_sum))
        for lo, hi in ((0, 7), (2, 5), (3, 7)):
            mine = ranges[lo:hi]
            stacks: list[Stack] = []
            for size in sorted({b - a for a, b in mine}, reverse=True):
                rows = [slice(a, b) for a, b in mine if b - a == size]
                stacks.append((np.stack([x[0, r] for r in rows]), np.stack([y[0, r] for r in rows])))
            combine = tuple((a - lo, b - lo) for a, b in subtrees(0, 7, lo, hi))
            again = animal.model(parameters=model.parameters.copy(), seed=seed)
            for _ in range(2):
                result = again.loss_and_gradient(stacks, combine, Streams(5, 9, lo))
            for row, (first, end) in enumerate(combine):
                total = node(first, end, shards[lo:hi])
                assert total is not None
                assert bits(again.gradients[row]) == bits(total[0]), animal
                assert result.loss_sums[row] == total[1], animal
            _check_memory(again, stacks, combine, Streams(5, 9, lo))


def _check_memory(model: Model, stacks: list[Stack], combine: tuple[tuple[int, int], ...], streams: Streams) -> None:
    tracemalloc.start()
    model.loss_and_gradient(stacks, combine, streams)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    layers = list(flattened(layer_shapes(model.architecture)))
    words = WORD_BYTES if any(layer.kind == "dropout" for layer in layers) else 0
    assert peak < ITERATOR_BYTES + NODE_BYTES * len(layers) + words, model.architecture


@pytest.mark.parametrize("seed", SEEDS)
def test_a_row_is_predicted_and_evaluated_whatever_comes_with_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for animal, model in made(seed):
        x, y = (part[0] for part in draw_rows(animal, model, rng, 1, 30))
        whole = model.predict(x)
        assert np.isfinite(whole).all(), animal
        for rows in (1, 29):
            assert bits(model.predict(x[:rows])) == bits(whole[:rows]), animal
            sums = model.evaluate_block(x[:rows], y[:rows], model.new_counts())
            assert sums.rows == rows and math.isfinite(sums.loss_sum), animal
