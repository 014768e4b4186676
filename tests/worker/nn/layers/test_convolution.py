"""Convolutions over two axes and one: against a plain formula, against differences, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lockstep.contract.errors import UserError
from lockstep.v1.model_pb2 import Layer
from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from worker.nn.layers import convolution, paired, winograd
from worker.nn.layers import windows as windows_module
from worker.nn.parameters import Array
from worker.nn.shapes import layer_shapes
from worker.nn.shapes.convolution import windows
from worker.specs import Architecture, Conv1dRecord, Conv2dRecord, InitializerRecord, ReluRecord
from worker.specs.convolution import READERS, PaddingRecord
from worker.specs.records import Reading

GLOROT = InitializerRecord("glorot_uniform")
VALID, SAME = PaddingRecord(), PaddingRecord("same")


def conv2d(filters: int, kernel: tuple[int, int] = (3, 3), **options: Any) -> Conv2dRecord:
    chosen = {"stride": (1, 1), "padding": VALID, "dilation": (1, 1), "groups": 1, "bias": True, **options}
    return Conv2dRecord(filters, kernel, initializer=GLOROT, **chosen)


def conv1d(filters: int, kernel: int = 3, **options: Any) -> Conv1dRecord:
    chosen = {"stride": 1, "padding": VALID, "dilation": 1, "groups": 1, "bias": True, **options}
    return Conv1dRecord(filters, kernel, initializer=GLOROT, **chosen)


def numbers(*shape: int) -> Array:
    return np.random.default_rng(4).standard_normal(shape)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
sides = st.integers(0, 3)
paddings = st.one_of(st.sampled_from([VALID, SAME]), st.builds(PaddingRecord, st.just("explicit"), sides, sides, sides, sides))


@st.composite
def records(draw: st.DrawFn) -> tuple[Conv2dRecord, tuple[int, int, int]]:
    """A convolution and an input row that it takes."""
    groups = draw(st.integers(1, 3))
    own, filters = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    record = conv2d(
        groups * filters,
        draw(pairs),
        stride=draw(pairs),
        padding=draw(paddings),
        dilation=draw(pairs),
        groups=groups,
        bias=draw(st.booleans()),
    )
    row = draw(st.integers(1, 6)), draw(st.integers(1, 6)), groups * own
    assume(all(along.count > 0 for along in windows(record, row)))
    return record, row


def padded(x: Array, record: Conv2dRecord) -> Array:
    """x (S, R, H, W, C) within its border, as the formula of "same" gives it."""
    pads, padding = [], record.padding
    explicit = ((padding.top, padding.bottom), (padding.left, padding.right))
    for axis in range(2):
        n, stride = x.shape[2 + axis], record.stride[axis]
        reach = (record.kernel[axis] - 1) * record.dilation[axis] + 1
        total = max((-(-n // stride) - 1) * stride + reach - n, 0)
        pads.append({"same": (total // 2, total - total // 2), "valid": (0, 0), "explicit": explicit[axis]}[padding.kind])
    return np.pad(x, [(0, 0), (0, 0), *pads, (0, 0)])


def formula(x: Array, w: Array, record: Conv2dRecord) -> Array:
    """The convolution of x (S, R, H, W, C) with w (kh, kw, C / G, C'), number by number."""
    x = padded(x, record)
    kh, kw, own, filters = w.shape
    (sh, sw), (dh, dw) = record.stride, record.dilation
    height, width = (x.shape[2] - (kh - 1) * dh - 1) // sh + 1, (x.shape[3] - (kw - 1) * dw - 1) // sw + 1
    y = np.zeros((*x.shape[:2], height, width, filters))
    for f in range(filters):
        first = f // (filters // record.groups) * own
        for i in range(height):
            for j in range(width):
                window = x[:, :, i * sh : i * sh + kh * dh : dh, j * sw : j * sw + kw * dw : dw, first : first + own]
                window = window[:, :, :kh, :kw]
                y[:, :, i, j, f] = (window * w[..., f]).sum(axis=(2, 3, 4))
    return y


def public(bench: LayerBench) -> Array:
    return bench.parameters["weight"].transpose(bench.shapes.tensors["weight"].axes)


def check_formula(record: Conv2dRecord, row: tuple[int, int, int]) -> None:
    x, bench = numbers(2, 3, *row), LayerBench(record, row)
    want = formula(x, public(bench), record) + bench.parameters.get("bias", 0.0)
    assert bench.shapes.output_shape == want.shape[2:]
    assert bench.forward(x) == pytest.approx(want, rel=1e-10, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(records())
def test_it_is_the_formula(drawn: tuple[Conv2dRecord, tuple[int, int, int]]) -> None:
    check_formula(*drawn)


def check_adjoint(record: Conv2dRecord, row: tuple[int, int, int]) -> None:
    """Without bias <dy, conv(x)> is linear both in x and in W, so it is <dx, x> and <dW, W>."""
    bench, x = LayerBench(record, row), numbers(2, 3, *row)
    y = bench.forward(x) - bench.parameters.get("bias", 0.0)
    dy = np.random.default_rng(5).standard_normal(y.shape)
    dx = bench.backward(dy)
    product = pytest.approx(float((dy * y).sum()), rel=1e-9, abs=1e-9)
    assert float((dx * x).sum()) == product
    assert float((bench.gradients["weight"] * bench.parameters["weight"]).sum()) == product
    if record.bias:
        assert bench.gradients["bias"] == pytest.approx(dy.sum(axis=(1, 2, 3)), rel=1e-9, abs=1e-9)


@settings(max_examples=12, deadline=None)
@given(records(), st.integers(1, 2), st.integers(1, 2))
def test_the_gradient(drawn: tuple[Conv2dRecord, tuple[int, int, int]], shards: int, rows: int) -> None:
    record, row = drawn
    assert worst_error(record, numbers(shards, rows, *row)) < 1e-6


@settings(max_examples=60, deadline=None)
@given(records())
def test_the_backward_pass_is_the_adjoint(drawn: tuple[Conv2dRecord, tuple[int, int, int]]) -> None:
    check_adjoint(*drawn)


@st.composite
def plain_records(draw: st.DrawFn) -> tuple[Conv2dRecord, tuple[int, int, int]]:
    """A convolution of three taps down without stride, and an input row of any number of rows and channels."""
    record = conv2d(draw(st.integers(1, 3)), (3, draw(st.integers(1, 4))), padding=draw(paddings), bias=draw(st.booleans()))
    row = draw(st.integers(1, 10)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    assume(all(along.count > 0 for along in windows(record, row)))
    return record, row


@settings(max_examples=60, deadline=None)
@given(plain_records(), st.sampled_from([1, 20, 1000]))
def test_four_rows_by_six_products(drawn: tuple[Conv2dRecord, tuple[int, int, int]], line: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LEAST_CHANNELS", 1), ("LEAST_ROWS", 1), ("LINE", line)):
            patch.setattr(winograd, name, value)
        check_formula(*drawn)
        check_adjoint(*drawn)


@st.composite
def wide_records(draw: st.DrawFn) -> tuple[Conv2dRecord, tuple[int, int, int]]:
    """A convolution whose windows are taken in pairs."""
    stride = draw(st.integers(1, 2))
    taps = stride * paired.LEAST_TAPS + draw(st.integers(0, 2))
    record = conv2d(draw(st.integers(1, 3)), (draw(st.integers(1, 3)), taps), stride=(draw(st.integers(1, 2)), stride))
    pairs = draw(st.integers(1, 3))
    return record, (draw(st.integers(3, 5)), (2 * pairs - 1) * stride + taps, draw(st.integers(1, 3)))


@settings(max_examples=40, deadline=None)
@given(wide_records())
def test_pairs_of_windows(drawn: tuple[Conv2dRecord, tuple[int, int, int]]) -> None:
    record, row = drawn
    assert paired.fits(windows(record, row)[1], 1, record.filters)
    check_formula(record, row)
    check_adjoint(record, row)


@pytest.mark.parametrize("record", [conv2d(8, padding=SAME), conv2d(2, bias=False), conv2d(4, groups=4)])
@pytest.mark.parametrize("may_overwrite", [False, True])
@pytest.mark.parametrize("piece", [1, 100, convolution.PIECE])
def test_a_rectifier_behind_it(record: Conv2dRecord, may_overwrite: bool, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.nn.layers.convolution.PIECE", piece)
    row, x = (5, 6, 4 if record.groups == 4 else 8), numbers(2, 3, 5, 6, 4 if record.groups == 4 else 8)
    plain = LayerBench(record, row, may_overwrite=may_overwrite)
    both = LayerBench(record, row, may_overwrite=may_overwrite, activation=ReluRecord())
    y = plain.forward(x)
    assert both.forward(x).tobytes() == np.maximum(y, 0).tobytes()
    dy = np.random.default_rng(5).standard_normal(y.shape)
    assert both.backward(dy).tobytes() == plain.backward(np.where(y > 0, dy, 0)).tobytes()
    for name, gradient in plain.gradients.items():
        assert both.gradients[name].tobytes() == gradient.tobytes(), name
    evaluation = LayerBench(record, row, training=False, activation=ReluRecord())
    assert evaluation.forward(x).tobytes() == np.maximum(y, 0).tobytes()


CASES = [
    (conv2d(5), (6, 7, 3)),
    (conv2d(5, padding=SAME), (6, 7, 3)),
    (conv2d(5, (1, 1)), (4, 5, 3)),
    (conv2d(4, (1, 1), stride=(2, 2)), (5, 6, 3)),
    (conv2d(4, (1, 2)), (4, 5, 3)),
    (conv2d(4, (1, 3), stride=(2, 2)), (5, 7, 3)),
    (conv2d(4, stride=(2, 2), padding=SAME), (7, 8, 3)),
    (conv2d(4, dilation=(2, 2), padding=SAME), (7, 8, 3)),
    (conv2d(4, groups=2, padding=SAME), (5, 6, 4)),
    (conv2d(4, (2, 2), groups=2, stride=(2, 3), dilation=(2, 1)), (7, 8, 4)),
    (conv2d(4, groups=4, padding=SAME), (5, 6, 4)),
    (conv2d(4, groups=4, stride=(2, 2), padding=SAME), (5, 6, 4)),
    (conv2d(4, padding=PaddingRecord("explicit", 4, 0, 5, 1)), (3, 4, 2)),
    (conv2d(18, (2, 3), stride=(2, 3), padding=SAME), (7, 8, 17)),
    (conv2d(6, (5, 5), padding=SAME), (6, 8, 1)),
    (conv2d(3, (2, 8), stride=(1, 2)), (5, 14, 2)),
    (conv2d(8), (5, 6, 9)),
    (conv2d(9, padding=SAME, bias=False), (6, 5, 8)),
    (conv2d(8, (3, 1), padding=PaddingRecord("explicit", 4, 0, 0, 0)), (2, 4, 8)),
    (conv2d(8, (3, 2), padding=PaddingRecord("explicit", 1, 2, 5, 0)), (4, 3, 8)),
]


@pytest.mark.parametrize(("record", "row"), CASES)
def test_a_stack_is_a_loop(record: Conv2dRecord, row: tuple[int, int, int]) -> None:
    for rows in (1, 5, 16):
        stack_is_loop(record, numbers(4, rows, *row))


@pytest.mark.parametrize(("record", "row"), CASES)
def test_small_blocks_compute_the_same(
    record: Conv2dRecord, row: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for numbers_of_a_block in (1, 200, 1000):
        monkeypatch.setattr(windows_module, "GATHERED", numbers_of_a_block)
        monkeypatch.setattr("worker.nn.layers.products.GATHERED", numbers_of_a_block)
        monkeypatch.setattr(windows_module, "TILE", numbers_of_a_block)
        monkeypatch.setattr(winograd, "LINE", numbers_of_a_block)
        monkeypatch.setattr("worker.nn.layers.convolution.PIECE", numbers_of_a_block)
        check_formula(record, row)
        if numbers_of_a_block == 200:
            assert worst_error(record, numbers(2, 1, *row)) < 1e-6
        stack_is_loop(record, numbers(3, 4, *row))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": SAME}, {"dilation": 2, "groups": 2}, {"groups": 4}])
def test_one_axis_is_an_image_of_height_one(options: dict[str, Any]) -> None:
    record, x = conv1d(4, **options), numbers(2, 3, 9, 4)
    wide = {name: (1, value) if name in ("stride", "dilation") else value for name, value in options.items()}
    image = conv2d(4, (1, 3), **wide)
    line, plane = LayerBench(record, (9, 4)), LayerBench(image, (1, 9, 4))
    plane.parameters["weight"][...] = line.parameters["weight"][:, :, None]
    plane.parameters["bias"][...] = line.parameters["bias"]
    y = line.forward(x)
    assert line.parameters["weight"].transpose(line.shapes.tensors["weight"].axes).shape[0] == 3
    assert y.tobytes() == plane.forward(x[:, :, None]).tobytes()
    dy = numbers(*y.shape)
    assert line.backward(dy).tobytes() == plane.backward(dy[:, :, None]).tobytes()
    assert line.gradients["weight"].tobytes() == plane.gradients["weight"].tobytes()
    assert worst_error(record, x[:1, :2]) < 1e-6


def test_nan_stays_nan() -> None:
    for groups in (1, 4):
        x = numbers(1, 1, 5, 5, 4)
        x[0, 0, 2, 2, 1] = np.nan
        y = LayerBench(conv2d(4, groups=groups, padding=SAME), (5, 5, 4), shards=1, rows=1).forward(x)
        assert np.isnan(y[0, 0, 1:4, 1:4, 1]).all()
        assert not np.isnan(y[0, 0, 0]).any()


def test_another_shape_is_refused_by_name() -> None:
    bench = LayerBench(conv2d(2), (5, 5, 1))
    with pytest.raises(UserError) as raised:
        bench.layer.forward(bench.x[..., :1], None)
    assert [(v.place, v.reason) for v in raised.value.violations] == [("layers[0].conv2d", "WRONG_SHAPE")]


FAR = 2**32 - 1


@pytest.mark.parametrize(
    ("record", "row", "places"),
    [
        (conv2d(2), (5, 5), {("", "SHAPES_DO_NOT_MEET")}),
        (conv1d(2), (5, 5, 1), {("", "SHAPES_DO_NOT_MEET")}),
        (conv2d(2), (2, 5, 1), {(".kernel.height", "SHAPES_DO_NOT_MEET")}),
        (conv1d(2, dilation=3), (6, 1), {(".kernel", "SHAPES_DO_NOT_MEET")}),
        (conv2d(2, (0, FAR)), (5, 5, 1), {(".kernel.height", "INVALID_FIELD"), (".kernel.width", "INVALID_FIELD")}),
        (conv2d(2, stride=(0, 1)), (5, 5, 1), {(".stride.height", "INVALID_FIELD")}),
        (conv2d(2, dilation=(1, FAR)), (5, 5, 1), {(".dilation.width", "INVALID_FIELD")}),
        (conv2d(2, padding=PaddingRecord("explicit", left=FAR)), (5, 5, 1), {(".padding.explicit.left", "INVALID_FIELD")}),
        (conv2d(FAR), (5, 5, 1), {(".filters", "INVALID_FIELD")}),
        (conv2d(0), (5, 5, 1), {(".filters", "INVALID_FIELD")}),
        (conv2d(4, groups=0), (5, 5, 4), {(".groups", "INVALID_FIELD")}),
        (conv2d(4, groups=3), (5, 5, 3), {(".groups", "INVALID_FIELD")}),
        (conv2d(4, groups=2), (5, 5, 3), {(".groups", "INVALID_FIELD")}),
        (conv2d(1, (1024, 1024)), (1024, 1024, 257), {(".kernel", "MODEL_TOO_LARGE")}),
    ],
)
def test_what_does_not_fit_is_refused(record: Any, row: tuple[int, ...], places: set[tuple[str, str]]) -> None:
    with pytest.raises(UserError) as raised:
        layer_shapes(Architecture((record,), row))
    place = f"model.layers[0].{record.kind}"
    assert {(v.place.removeprefix(place), v.reason) for v in raised.value.violations} == places


def test_the_weights_are_public_as_height_width_inputs_filters() -> None:
    (layer,) = layer_shapes(Architecture((conv2d(6, (2, 3), groups=2),), (5, 5, 4)))
    weight = layer.tensors["weight"]
    assert (weight.shape, weight.internal_shape) == ((2, 3, 2, 6), (6, 3, 2, 2))
    assert (weight.initial.inputs, weight.initial.outputs) == (12, 18)


def test_reading() -> None:
    wrong: list[Any] = []
    reading = Reading("place", "relu", wrong)
    message = Layer()
    message.conv2d.filters = 3
    message.conv2d.kernel.height, message.conv2d.kernel.width = 2, 5
    he = InitializerRecord("he_normal")
    assert READERS["conv2d"](message, reading) == Conv2dRecord(3, (2, 5), (1, 1), VALID, (1, 1), 1, True, he)
    message.conv2d.padding.explicit.left = 2
    message.conv2d.bias = False
    read = READERS["conv2d"](message, reading)
    assert isinstance(read, Conv2dRecord)
    assert (read.padding, read.bias) == (PaddingRecord("explicit", left=2), False)
    message = Layer()
    message.conv1d.filters, message.conv1d.kernel, message.conv1d.stride = 3, 4, 2
    message.conv1d.padding.same.SetInParent()
    assert READERS["conv1d"](message, reading) == Conv1dRecord(3, 4, 2, SAME, 1, 1, True, he)
    assert not wrong
    message.conv1d.padding.Clear()
    READERS["conv1d"](message, reading)
    assert [(v.place, v.reason) for v in wrong] == [("place.padding", "INVALID_FIELD")]
