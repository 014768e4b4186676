"""What a backward pass announces: ranges that it does not touch any more, the whole vector in the end, in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.worker.nn.networks import CROSS_ENTROPY, dense_net, draw_stack
from tests.worker.nn.zoo import ZOO
from worker.nn.model import Model, Stack
from worker.nn.streams import Streams

STREAMS = Streams(5, 9, 0)


def announced(model: Model, stacks: Sequence[Stack], combine: Any = None) -> list[int]:
    """What one pass announces; what it calls finished is compared with what is there in the end."""
    model.loss_and_gradient(stacks, combine, STREAMS)
    expected = model.gradients.copy()
    model.gradients[...] = np.nan
    counts: list[int] = []

    def finished(count: int) -> None:
        for first, end in model.finished_ranges[slice(counts[-1] if counts else 0, count)]:
            assert model.gradients[:, first:end].tobytes() == expected[:, first:end].tobytes()
        counts.append(count)

    for tensors in (expected, model.gradients):  # what lies between tensors is never written by some programs
        for entry in model.layout.entries:
            tensors[:, entry.offset + entry.size : -(-(entry.offset + entry.size) // 16) * 16] = 0
    model.loss_and_gradient(stacks, combine, STREAMS, finished)
    assert model.gradients.tobytes() == expected.tobytes()
    return counts


def covers(model: Model) -> bool:
    """Whether the ranges cover the vector once."""
    ranges = sorted(model.finished_ranges)
    return [first for first, _ in ranges] + [model.layout.size] == [0] + [end for _, end in ranges]


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("combine", [None, ((0, 1), (1, 2), (2, 3))])
def test_ranges_are_complete_when_they_are_announced(name: str, combine: Any) -> None:
    animal, draw = ZOO[name], np.random.default_rng(3)
    model = animal.model(seed=5)
    counts = announced(model, [animal.draw(draw, 2, 4), animal.draw(draw, 1, 3)], combine)
    assert counts == sorted(counts) and {*counts} == {*range(counts[0], len(model.finished_ranges) + 1)} and counts[0] <= 1
    assert covers(model)


@pytest.mark.parametrize("combine", [None, ((0, 1), (1, 2))])
def test_large_weights_are_announced_tile_by_tile(combine: Any) -> None:
    model = Model(dense_net((1500, 3), inputs=(1400,)), CROSS_ENTROPY)
    counts = announced(model, [draw_stack(np.random.default_rng(0), 2, 4, (1400,), 3, CROSS_ENTROPY)], combine)
    assert len(model.finished_ranges) > 3 and counts[-1] == len(model.finished_ranges)
    assert covers(model)


def test_a_pass_without_a_listener_follows_one_with() -> None:
    model = Model(dense_net((8, 3), inputs=(6,)), CROSS_ENTROPY)
    stack = draw_stack(np.random.default_rng(0), 1, 4, (6,), 3, CROSS_ENTROPY)
    heard: list[int] = []
    model.loss_and_gradient([stack], finished=heard.append)
    count = len(heard)
    model.loss_and_gradient([stack])
    assert count and len(heard) == count
