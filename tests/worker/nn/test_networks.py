"""Networks with paths: residual and parallel layers, both layouts, every kind of layer behind every other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lockstep.contract.errors import UserError
from tests.worker.nn.allocations import peak_bytes
from tests.worker.nn.networks import CROSS_ENTROPY, draw_stack
from worker.nn.gradient_check import check_gradients
from worker.nn.model import Model
from worker.nn.shapes import flattened, layer_shapes
from worker.nn.streams import Streams
from worker.specs import (
    Architecture,
    AveragePoolRecord,
    Conv1dRecord,
    Conv2dRecord,
    DenseRecord,
    FlattenRecord,
    GlobalMaxRecord,
    GlobalMeanRecord,
    InitializerRecord,
    LayerRecord,
    MaxPoolRecord,
    ParallelRecord,
    ReluRecord,
    ResidualRecord,
)
from worker.specs.convolution import PaddingRecord

RELU = ReluRecord()


def dense(units: int) -> DenseRecord:
    return DenseRecord(units, True, InitializerRecord("glorot_uniform"))


VALID, SAME = PaddingRecord(), PaddingRecord("same")


def conv(filters: int, kernel: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1, bias: bool = True) -> Conv2dRecord:
    two = InitializerRecord("glorot_uniform")
    return Conv2dRecord(filters, (kernel,) * 2, (stride,) * 2, SAME, (dilation,) * 2, groups, bias, two)


def line(filters: int, stride: int = 1) -> Conv1dRecord:
    return Conv1dRecord(filters, 3, stride, SAME, 1, 1, True, InitializerRecord("glorot_uniform"))


HALVES = (2, 2), (2, 2)

IMAGES: dict[str, tuple[LayerRecord, ...]] = {
    "lenet": (
        *(conv(6, 5), RELU, MaxPoolRecord(*HALVES, VALID), conv(16, 5), RELU, MaxPoolRecord(*HALVES, VALID)),
        *(FlattenRecord(), dense(4)),
    ),
    "residual": (
        *(conv(8), RELU, ResidualRecord((conv(8), RELU, conv(8, bias=False)), ()), RELU),
        *(ResidualRecord((conv(16, stride=2), RELU, conv(16)), (conv(16, 1, 2),)), RELU, GlobalMeanRecord(), dense(4)),
    ),
    "depthwise": (
        *(conv(8), RELU, conv(8, groups=8), RELU, conv(8, 1), conv(8, stride=2, groups=8, bias=False), RELU),
        *(GlobalMaxRecord(), dense(4)),
    ),
    "groups and dilation": (
        *(conv(8, dilation=2), RELU, conv(8, groups=4), RELU, conv(8, 2, 2, groups=2), RELU, GlobalMeanRecord(), dense(4)),
    ),
    "overlapping pools": (
        *(conv(6), MaxPoolRecord((3, 3), (2, 2), SAME), RELU, conv(6, 1), AveragePoolRecord((3, 3), (2, 2), SAME)),
        *(FlattenRecord(), dense(4)),
    ),
    "average pools": (
        *(conv(6), RELU, AveragePoolRecord(*HALVES, VALID), conv(6, 2), MaxPoolRecord((3, 3), (1, 1), VALID)),
        *(FlattenRecord(), dense(4)),
    ),
    "a pool first": (RELU, MaxPoolRecord(*HALVES, VALID), conv(4), RELU, GlobalMeanRecord(), dense(4)),
}

LINES: dict[str, tuple[LayerRecord, ...]] = {
    "lines": (line(8), RELU, line(8, 2), RELU, GlobalMaxRecord(), dense(4)),
}

PATHS: dict[str, tuple[LayerRecord, ...]] = {
    "identity": (dense(5), ResidualRecord((dense(5), RELU, dense(5)), ()), RELU, dense(4)),
    "short cut": (dense(5), RELU, ResidualRecord((RELU, dense(6), RELU), (dense(6),)), dense(4)),
    "at the input": (FlattenRecord(), ResidualRecord((dense(12),), ()), RELU, dense(4)),
    "concatenate": (dense(5), ParallelRecord(((dense(3), RELU), (), (RELU, dense(2))), "concatenate"), dense(4)),
    "add": (dense(5), ParallelRecord(((dense(4), RELU), (RELU, dense(4)), (dense(4),)), "add"), RELU, dense(4)),
    "deep": (dense(5), ResidualRecord((ResidualRecord((RELU, dense(5)), ()), RELU), (RELU,)), RELU, dense(4), RELU),
    "positions": (dense(40), ResidualRecord((RELU, dense(40)), ()), FlattenRecord(), dense(4)),
    **IMAGES,
    **LINES,
}


def row(name: str) -> tuple[int, ...]:
    if name in IMAGES:
        return (7, 6, 2)
    return (12, 4) if name in LINES else (3, 4) if name in ("at the input", "positions") else (6,)


@pytest.mark.parametrize("name", [name for name in PATHS if name not in IMAGES])
def test_the_chain_rule_over_paths(name: str) -> None:
    rng = np.random.default_rng(0)
    stacks = [draw_stack(rng, s, r, row(name), 4, CROSS_ENTROPY, np.float64) for s, r in ((3, 4), (2, 3))]
    checks = check_gradients(Architecture(PATHS[name], row(name)), CROSS_ENTROPY, stacks, seed=2)
    assert {check.name: check.worst_relative_error for check in checks if check.worst_relative_error > 1e-6} == {}


@pytest.mark.parametrize("name", IMAGES)
def test_the_chain_rule_over_images(name: str) -> None:
    rng = np.random.default_rng(0)
    stacks = [draw_stack(rng, s, r, row(name), 4, CROSS_ENTROPY, np.float64) for s, r in ((2, 2), (1, 1))]
    architecture = Architecture(PATHS[name], row(name))
    model = Model(architecture, CROSS_ENTROPY, seed=2, dtype=np.float64)
    for tensor in model.named_parameters().values():
        # No bias is 0: a channel of zeros would stand where a rectifier has no derivative.
        tensor += 0.1 * rng.standard_normal(tensor.shape)
    checks = check_gradients(architecture, CROSS_ENTROPY, stacks, parameters=model.parameters, samples=40)
    assert {check.name: check.worst_relative_error for check in checks if check.worst_relative_error > 1e-6} == {}


@pytest.mark.parametrize("name", PATHS)
def test_a_stack_is_a_loop_over_its_shards(name: str) -> None:
    architecture = Architecture(PATHS[name], row(name))
    x, y = draw_stack(np.random.default_rng(1), 4, 5, row(name), 4, CROSS_ENTROPY)
    model = Model(architecture, CROSS_ENTROPY, seed=3)
    model.loss_and_gradient([(x, y)], tuple((s, s + 1) for s in range(4)))
    together = model.gradients[:4].copy()
    alone = Model(architecture, CROSS_ENTROPY, seed=3)
    for shard in range(4):
        alone.loss_and_gradient([(x[shard : shard + 1], y[shard : shard + 1])])
        assert alone.gradients[0].tobytes() == together[shard].tobytes()


@pytest.mark.parametrize("name", PATHS)
def test_a_step_allocates_nothing_after_the_first(name: str) -> None:
    inputs = (13, 12, 2) if name in IMAGES else row(name)
    stack = draw_stack(np.random.default_rng(1), 4, 50, inputs, 4, CROSS_ENTROPY)
    model = Model(Architecture(PATHS[name], inputs), CROSS_ENTROPY)
    streams = Streams(0, 1, 0)
    for _ in range(2):
        model.loss_and_gradient([stack], streams=streams)
    assert peak_bytes(lambda: model.loss_and_gradient([stack], streams=streams)) < 8192


def test_layers_inside_have_names_places_and_numbers() -> None:
    layers = list(flattened(layer_shapes(Architecture(PATHS["concatenate"], (6,)))))
    assert [(layer.number, layer.name) for layer in layers] == [
        (0, "0.dense"),
        (1, "1.parallel"),
        (2, "1.parallel.branches.0.0.dense"),
        (3, "1.parallel.branches.0.1.relu"),
        (4, "1.parallel.branches.2.0.relu"),
        (5, "1.parallel.branches.2.1.dense"),
        (6, "2.dense"),
    ]
    assert layers[2].place == "layers[1].parallel.branches[0].layers[0].dense"
    assert layers[1].output_shape == (10,)


@pytest.mark.parametrize(
    ("layer", "place", "words"),
    [
        (ResidualRecord((dense(7),), ()), "model.layers[0].residual.layers", "the input, which is added to it"),
        (ResidualRecord((dense(7),), (dense(8),)), "model.layers[0].residual.layers", "the short cut has shape (8,)"),
        (ParallelRecord(((dense(7),), (dense(8),)), "add"), "model.layers[0].parallel.branches[1]", "it must be (7,)"),
    ],
)
def test_paths_that_do_not_meet(layer: Any, place: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        layer_shapes(Architecture((layer,), (6,)))
    (violation,) = raised.value.violations
    assert violation.place == place
    assert words in str(violation)
