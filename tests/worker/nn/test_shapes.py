"""Shapes of layers, the flat vector's layout, the fit between model, loss and dataset."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.contract.errors import UserError, Violation
from tests.worker.nn.networks import CROSS_ENTROPY, SQUARES, dense_net
from worker.nn.shapes import check_against_dataset, layer_shapes, parameter_layout, worker_memory_bytes
from worker.specs import Architecture, DenseRecord, FlattenRecord, InitializerRecord, LossRecord, ReluRecord, ResidualRecord


def dense(units: int) -> DenseRecord:
    return DenseRecord(units, True, InitializerRecord("zeros"))


def test_shapes_follow_the_layers() -> None:
    layers = layer_shapes(Architecture((FlattenRecord(), dense(5), ReluRecord()), (2, 3)))
    assert [(layer.name, layer.place, layer.output_shape) for layer in layers] == [
        ("0.flatten", "layers[0].flatten", (6,)),
        ("1.dense", "layers[1].dense", (5,)),
        ("2.relu", "layers[2].relu", (5,)),
    ]
    assert layers[1].parameters == {"weight": (6, 5), "bias": (5,)}
    assert [layer.parameter_count for layer in layers] == [0, 35, 0]


@given(units=st.lists(st.integers(1, 50), min_size=1, max_size=4), inputs=st.integers(1, 50), bias=st.booleans())
def test_tensors_are_aligned_and_apart(units: list[int], inputs: int, bias: bool) -> None:
    layout = parameter_layout(dense_net(units, inputs=(inputs,), bias=bias))
    at = 0
    for entry in layout.entries:
        assert entry.offset % 16 == 0
        assert 0 <= entry.offset - at < 16
        assert entry.size == math.prod(entry.shape) == math.prod(entry.internal_shape)
        assert tuple(entry.internal_shape[axis] for axis in entry.axes) == entry.shape
        at = entry.offset + entry.size
    assert layout.size % 16 == 0
    assert 0 <= layout.size - at < 16


def test_shapes_that_do_not_meet() -> None:
    architecture = Architecture((dense(5), ResidualRecord((dense(6),), ()), dense(0), dense(3)), (28, 28))
    with pytest.raises(UserError) as raised:
        layer_shapes(architecture)
    assert [str(violation) for violation in raised.value.violations] == [
        "model.layers[1].residual.layers: got an output of shape (28, 6); the input, which is added to it, has shape (28, 5); "
        "both must be one shape",
    ]  # the layers behind it are not judged: what comes to them is not known
    assert raised.value.reason == "SHAPES_DO_NOT_MEET"


def test_numbers_that_overflow_are_refused_before_anything_is_allocated() -> None:
    with pytest.raises(UserError, match=r"model\.layers\[0\]\.dense\.units: got 1099511627776"):
        layer_shapes(Architecture((dense(2**40),), (4,)))
    with pytest.raises(UserError) as raised:
        layer_shapes(Architecture((dense(2**20), dense(2**20), dense(2**20)), (4,)))
    assert [(v.place, v.reason) for v in raised.value.violations] == [("model.layers[1].dense", "MODEL_TOO_LARGE")]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_rows_without_inputs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="rows need at least one input"):
        layer_shapes(Architecture((FlattenRecord(), dense(2)), shape))


@pytest.mark.parametrize(
    ("loss", "classes", "width", "expected"),
    [
        (CROSS_ENTROPY, 10, None, None),
        (CROSS_ENTROPY, 3, None, None),
        (SQUARES, None, 10, None),
        (
            CROSS_ENTROPY,
            12,
            None,
            "model.layers[2].dense.units: got 10; the dataset has 12 classes; the last layer must give at least 12 outputs",
        ),
        (
            SQUARES,
            None,
            3,
            "model.layers[2].dense.units: got 10; "
            "the dataset has 3 numbers per row; the last layer must give exactly 3 outputs",
        ),
        (
            CROSS_ENTROPY,
            None,
            3,
            "loss.softmax_cross_entropy: got 3 numbers per row; "
            "the dataset's targets are numbers, not classes; use `mean_squared_error: {}`",
        ),
        (
            SQUARES,
            10,
            None,
            "loss.mean_squared_error: got 10 classes; "
            "the dataset's targets are classes, not numbers; use `softmax_cross_entropy: {}`",
        ),
    ],
)
def test_a_model_fits_its_dataset(loss: LossRecord, classes: int | None, width: int | None, expected: str | None) -> None:
    found = check_against_dataset(dense_net([16, 10], inputs=(4,)), loss, classes=classes, width=width)
    assert [str(violation) for violation in found] == ([expected] if expected else [])


def test_an_output_of_several_axes_is_refused() -> None:
    (violation,) = check_against_dataset(Architecture((ReluRecord(),), (4, 4)), CROSS_ENTROPY, classes=4)
    assert isinstance(violation, Violation)
    assert violation.place == "model.layers[0].relu"
    assert "the last layer must give one axis" in violation.remedy


def test_shapes_are_part_of_the_fit() -> None:
    found = check_against_dataset(dense_net([16, 10], inputs=(4, 4)), CROSS_ENTROPY, classes=10)
    assert [violation.place for violation in found] == ["model.layers[2].dense"]
    assert "`flatten: {}` before the last dense layer" in found[0].remedy


def test_memory_grows_with_what_it_holds() -> None:
    def memory(units: list[int], **sizes: int) -> int:
        options = {"batch_size": 128, "shards": 4, "workers": 1, "optimizer_states": 1} | sizes
        return worker_memory_bytes(dense_net(units, inputs=(64,)), CROSS_ENTROPY, **options)

    least = memory([128, 10])
    assert least < memory([1280, 10])
    assert least < memory([128, 10], batch_size=4096)
    assert least < memory([128, 10], optimizer_states=2)
    # Parameters, gradients and velocity of the largest net of the benchmarks are the least that it can be. The sums of its
    # weights' gradients wait in tiles: with a copy for each shard it would be 650 MiB.
    largest = dense_net([2048, 2048, 2048, 10], inputs=(784,))
    sizes = {"batch_size": 512, "shards": 8, "workers": 1, "optimizer_states": 1}
    assert 3 * 4 * 10_000_000 < worker_memory_bytes(largest, CROSS_ENTROPY, **sizes) < 480 << 20
