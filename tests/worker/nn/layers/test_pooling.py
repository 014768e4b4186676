"""Pooling over windows and over all positions: against a plain formula, against differences, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lockstep.contract.errors import UserError
from lockstep.v1.model_pb2 import GlobalPool, Layer
from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from worker.nn.layers import Layout, layer_class
from worker.nn.layers import windows as windows_module
from worker.nn.parameters import Array
from worker.nn.shapes import layer_shapes
from worker.nn.shapes.convolution import windows
from worker.specs import Architecture, AveragePoolRecord, GlobalMaxRecord, GlobalMeanRecord, MaxPoolRecord, ReluRecord
from worker.specs.convolution import READERS, PaddingRecord
from worker.specs.records import Reading

VALID, SAME = PaddingRecord(), PaddingRecord("same")
KINDS = [MaxPoolRecord, AveragePoolRecord]
Row = tuple[int, int, int]


def apart(*shape: int) -> Array:
    """Numbers far enough from each other for differences not to change which is the largest."""
    size = int(np.prod(shape))
    return np.random.default_rng(7).permutation(size).reshape(shape) / 8.0 - size / 16.0


@st.composite
def pools(draw: st.DrawFn) -> tuple[Any, Row]:
    """A pooling layer and an input row that it takes."""
    size = st.integers(1, 3)
    window, stride = (draw(size), draw(size)), (draw(size), draw(size))
    down, across = st.integers(0, window[0] - 1), st.integers(0, window[1] - 1)
    padding = draw(
        st.one_of(st.sampled_from([VALID, SAME]), st.builds(PaddingRecord, st.just("explicit"), down, down, across, across))
    )
    record = draw(st.sampled_from(KINDS))(window, stride, padding)
    row = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(size)
    assume(all(along.count > 0 for along in windows(record, row)))
    return record, row


def members(record: Any, row: Row) -> list[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """Each window's place in the output, and the places in the image that it holds, in C order."""
    padding, before, counts = record.padding, [], []
    explicit = ((padding.top, padding.bottom), (padding.left, padding.right))
    for axis in range(2):
        n, k, s = row[axis], record.window[axis], record.stride[axis]
        total = max((-(-n // s) - 1) * s + k - n, 0)
        first, last = {"same": (total // 2, total - total // 2), "valid": (0, 0), "explicit": explicit[axis]}[padding.kind]
        before.append(first)
        counts.append((n + first + last - k) // s + 1)
    found = []
    for i in range(counts[0]):
        for j in range(counts[1]):
            down = range(i * record.stride[0] - before[0], i * record.stride[0] - before[0] + record.window[0])
            across = range(j * record.stride[1] - before[1], j * record.stride[1] - before[1] + record.window[1])
            found.append(((i, j), [(p, q) for p in down for q in across if 0 <= p < row[0] and 0 <= q < row[1]]))
    return found


def check_formula(record: Any, row: Row, x: Array) -> None:
    """Both passes against loops over windows."""
    bench = LayerBench(record, row, shards=x.shape[0], rows=x.shape[1])
    y = bench.forward(x)
    dy = np.random.default_rng(5).standard_normal(y.shape)
    want, want_dx = np.full(y.shape, np.nan), np.zeros(x.shape)
    for (i, j), places in members(record, row):
        values = np.stack([x[:, :, p, q] for p, q in places])
        winner = values.argmax(axis=0)
        want[:, :, i, j] = values.max(axis=0) if isinstance(record, MaxPoolRecord) else values.mean(axis=0)
        for number, (p, q) in enumerate(places):
            share = (winner == number) if isinstance(record, MaxPoolRecord) else 1 / len(places)
            want_dx[:, :, p, q] += dy[:, :, i, j] * share
    assert y == pytest.approx(want, rel=1e-12, abs=1e-12)
    assert bench.backward(dy) == pytest.approx(want_dx, rel=1e-12, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(pools(), st.booleans())
def test_it_is_the_formula(drawn: tuple[Any, Row], ties: bool) -> None:
    record, row = drawn
    x = apart(2, 3, *row)
    check_formula(record, row, np.floor(x / 8) if ties else x)


@settings(max_examples=15, deadline=None)
@given(pools())
def test_the_gradient(drawn: tuple[Any, Row]) -> None:
    record, row = drawn
    # Pooling is linear as long as the largest stay the largest, so a wide step is as exact, and rounds less.
    assert worst_error(record, apart(2, 2, *row), step=1e-3) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_between_windows_gets_no_gradient(kind: Any) -> None:
    # As many numbers as the windows hold together, but the last window hangs over and one number lies in none.
    for record, row in [(kind((2, 1), (3, 1), SAME), (4, 4, 2)), (kind((2, 2), (2, 3), SAME), (4, 4, 1))]:
        check_formula(record, row, apart(2, 3, *row))


CASES = [
    (kind(window, stride, padding), (7, 8, 3))
    for kind in KINDS
    for window, stride, padding in [
        ((2, 2), (2, 2), VALID),
        ((2, 2), (2, 2), SAME),
        ((3, 3), (2, 2), SAME),
        ((3, 2), (1, 1), PaddingRecord("explicit", 2, 1, 1, 0)),
        ((1, 1), (1, 1), VALID),
        ((1, 2), (3, 3), VALID),
    ]
]


@pytest.mark.parametrize(("record", "row"), CASES)
def test_a_stack_is_a_loop_and_small_tiles_compute_the_same(record: Any, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (1, 5):
        stack_is_loop(record, apart(4, rows, *row))
    for tile in (1, 40, 300):
        monkeypatch.setattr(windows_module, "TILE", tile)
        check_formula(record, row, apart(3, 2, *row))
        stack_is_loop(record, apart(3, 2, *row))


@pytest.mark.parametrize(("record", "row"), [case for case in CASES if isinstance(case[0], MaxPoolRecord)])
def test_a_rectifier_before_or_behind_a_maximum(record: Any, row: Row) -> None:
    x = apart(2, 3, *row) - 50
    both, plain = LayerBench(record, row, rows=3, activation=ReluRecord()), LayerBench(record, row, rows=3)
    y = both.forward(x)
    assert (y == 0).any()
    assert (y > 0).any()
    assert y.tobytes() == np.maximum(plain.forward(x), 0).tobytes()
    dy = np.random.default_rng(5).standard_normal(y.shape)
    dx = both.backward(dy)
    assert dx.tobytes() == plain.backward(np.where(y > 0, dy, 0)).tobytes()
    # The rectifier first, as a layer of its own.
    assert plain.forward(np.maximum(x, 0)).tobytes() == y.tobytes()
    assert np.where(x > 0, plain.backward(dy), 0) == pytest.approx(dx, abs=0)


def test_the_border_never_wins() -> None:
    x = np.full((1, 1, 3, 3, 1), -5.0)
    for record in (MaxPoolRecord((3, 3), (1, 1), SAME), AveragePoolRecord((3, 3), (1, 1), SAME)):
        assert (LayerBench(record, (3, 3, 1), shards=1, rows=1).forward(x) == -5).all()


@pytest.mark.parametrize("record", [MaxPoolRecord((2, 2), (2, 2), VALID), GlobalMaxRecord()])
def test_the_first_of_equals_gets_the_gradient(record: Any) -> None:
    for value in (0.0, -np.inf, np.nan):
        bench = LayerBench(record, (2, 2, 1), shards=1, rows=1)
        y = bench.forward(np.full((1, 1, 2, 2, 1), value))
        assert np.array_equal(y.ravel(), [value], equal_nan=True)
        dx = bench.backward(np.full(y.shape, 3.0))
        assert dx.ravel().tolist() == [3, 0, 0, 0]


@pytest.mark.parametrize(
    "record",
    [MaxPoolRecord((2, 2), (1, 1), SAME), AveragePoolRecord((2, 2), (1, 1), SAME), GlobalMaxRecord(), GlobalMeanRecord()],
)
def test_nan_stays_nan(record: Any) -> None:
    for place in range(9):
        x = apart(1, 1, 3, 3, 1)
        x.reshape(-1)[place] = np.nan
        y = LayerBench(record, (3, 3, 1), shards=1, rows=1).forward(x)
        if isinstance(record, GlobalMaxRecord | GlobalMeanRecord):
            assert np.isnan(y).all()
        else:
            holds = {at for at, places in members(record, (3, 3, 1)) if divmod(place, 3) in places}
            assert {(int(i), int(j)) for i, j in np.argwhere(np.isnan(y[0, 0, :, :, 0]))} == holds


@pytest.mark.parametrize("record", [GlobalMaxRecord(), GlobalMeanRecord()])
@pytest.mark.parametrize("row", [(3, 4, 2), (5, 3), (1, 1, 1), (7, 1)])
@pytest.mark.parametrize("layout", list(Layout))
def test_global_pooling(record: Any, row: tuple[int, ...], layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = layer_class(record, row)
    assert kind.layout(record, row) is None
    monkeypatch.setattr(kind, "layout", classmethod(lambda cls, record, row: layout))
    for rows in (1, 3):
        x = apart(2, rows, *row)
        assert worst_error(record, x) < 1e-6
        stack_is_loop(record, np.floor(apart(4, rows, *row) / 4))
        flat = x.reshape(2, rows, -1, row[-1])
        want = flat.max(axis=2) if isinstance(record, GlobalMaxRecord) else flat.mean(axis=2)
        assert LayerBench(record, row, rows=rows).forward(x) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("record", [*(case[0] for case in CASES[::6]), GlobalMaxRecord(), GlobalMeanRecord()])
def test_evaluation_computes_the_same(record: Any) -> None:
    x = apart(2, 3, 4, 4, 2)
    training, evaluation = LayerBench(record, (4, 4, 2)), LayerBench(record, (4, 4, 2), training=False)
    assert training.forward(x).tobytes() == evaluation.forward(x).tobytes()


@pytest.mark.parametrize("record", [GlobalMaxRecord(), GlobalMeanRecord()])
def test_each_pass_reads_the_x_that_it_is_given(record: Any) -> None:
    # Of a first layer it is another array each time.
    bench, other = LayerBench(record, (4, 4, 2)), LayerBench(record, (4, 4, 2))
    y = bench.forward(apart(2, 3, 4, 4, 2))
    other.x.fill(np.nan)
    assert other.public(other.layer.forward(bench.x.copy(), None)).tobytes() == y.tobytes()
    assert other.backward(y).tobytes() == bench.backward(y).tobytes()


FAR = 2**32 - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("window", "stride", "padding", "row", "places"),
    [
        ((2, 2), (2, 2), VALID, (5, 5), {("", "SHAPES_DO_NOT_MEET")}),
        ((2, 6), (2, 2), VALID, (5, 5, 1), {(".window.width", "SHAPES_DO_NOT_MEET")}),
        ((0, FAR), (2, 2), VALID, (5, 5, 1), {(".window.height", "INVALID_FIELD"), (".window.width", "INVALID_FIELD")}),
        ((2, 2), (2, FAR), VALID, (5, 5, 1), {(".stride.width", "INVALID_FIELD")}),
        ((2, 2), (2, 2), PaddingRecord("explicit", top=2), (5, 5, 1), {(".padding.explicit.top", "INVALID_FIELD")}),
        ((2, 2), (2, 2), PaddingRecord("explicit", right=FAR), (5, 5, 1), {(".padding.explicit.right", "INVALID_FIELD")}),
    ],
)
def test_what_does_not_fit_is_refused(
    kind: Any, window: Any, stride: Any, padding: Any, row: tuple[int, ...], places: set[tuple[str, str]]
) -> None:
    with pytest.raises(UserError) as raised:
        layer_shapes(Architecture((kind(window, stride, padding),), row))
    place = f"model.layers[0].{kind.kind}"
    assert {(v.place.removeprefix(place), v.reason) for v in raised.value.violations} == places


def test_global_pooling_needs_positions() -> None:
    with pytest.raises(UserError) as raised:
        layer_shapes(Architecture((GlobalMeanRecord(),), (5,)))
    assert [(v.place, v.reason) for v in raised.value.violations] == [("model.layers[0].global_pool", "SHAPES_DO_NOT_MEET")]


def test_reading() -> None:
    reading, message = Reading("place", "", []), Layer()
    message.max_pool.window.height, message.max_pool.window.width = 2, 3
    assert READERS["max_pool"](message, reading) == MaxPoolRecord((2, 3), (2, 3), VALID)
    message.max_pool.stride.height = message.max_pool.stride.width = 1
    assert READERS["max_pool"](message, reading) == MaxPoolRecord((2, 3), (1, 1), VALID)
    message = Layer()
    message.average_pool.window.height = message.average_pool.window.width = 2
    message.average_pool.padding.same.SetInParent()
    assert READERS["average_pool"](message, reading) == AveragePoolRecord((2, 2), (2, 2), SAME)
    message = Layer()
    message.global_pool.SetInParent()
    assert READERS["global_pool"](message, reading) == GlobalMeanRecord()
    message.global_pool.reduction = GlobalPool.MAX
    assert READERS["global_pool"](message, reading) == GlobalMaxRecord()
