"""One layer by itself, built as a network builds it, with memory of its own: for the tests of layers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from worker.nn.initializers import INITIALIZERS
from worker.nn.layers import Layout, Setting, build_layer, layer_class
from worker.nn.parameters import Array, aligned_zeros
from worker.nn.shapes import Role, layer_shapes
from worker.nn.streams import Streams
from worker.randomness import Purpose, Stream
from worker.specs import Architecture, AttentionRecord


class OwnMemory:
    """Every array is new and full of NaN (of -1 where it holds integers), so that none may be read before it is written."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)

    def output(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        out = aligned_zeros(shape, dtype or self.dtype)
        out.fill(np.nan if out.dtype.kind == "f" else True if out.dtype.kind == "b" else -1)
        return out

    kept = forward_scratch = backward_scratch = input_gradient = output

    def constant(self, shape: tuple[int, ...], value: float, dtype: Any = None) -> Array:
        out = aligned_zeros(shape, dtype or self.dtype)
        out.fill(value)
        out.flags.writeable = False
        return out


class LayerBench:
    """A layer of `record` for S shards of R rows; parameters as drawn, then shaken so that none is 0 or 1."""

    def __init__(
        self,
        record: Any,
        row: tuple[int, ...],
        *,
        shards: int = 2,
        rows: int = 3,
        dtype: Any = np.float64,
        training: bool = True,
        seed: int = 3,
        may_overwrite: bool = False,
        streams: Streams | None = None,
        activation: Any = None,
    ) -> None:
        # Alone, attention has no network whose input could mark padding.
        alone = replace(record, padding_index=None) if isinstance(record, AttentionRecord) else record
        (shapes,) = layer_shapes(Architecture((alone,), row))
        self.record, self.shapes, self.dtype, self.streams = record, shapes, np.dtype(dtype), streams
        self.shards, self.rows = shards, rows
        kind = layer_class(record, row)
        self.layout = kind.layout(record, row) or Layout.ROWS_LAST
        self.parameters: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        rng = np.random.default_rng(seed)
        stream = Stream(seed, Purpose.INITIAL_WEIGHTS, layer=shapes.number)
        for name, tensor in shapes.tensors.items():
            drawn = INITIALIZERS[tensor.initial.kind](stream, tensor.initial, tensor.shape)
            inverse = np.argsort(tensor.axes)
            value = drawn.transpose(inverse).astype(dtype)
            if tensor.role is not Role.STATE:
                value = value + 0.1 * rng.standard_normal(value.shape).astype(dtype)
            self.parameters[name] = np.ascontiguousarray(value, dtype=dtype)
            # As in a network: each shard's gradient lies in a vector of its own, so that the stack has gaps.
            vectors = np.full((shards, value.size + 16), np.nan, dtype)
            self.gradients[name] = vectors[:, : value.size].reshape(shards, *tensor.internal_shape)
        self.x = aligned_zeros(self.layout.shape(shards, rows, shapes.input_shape), dtype)
        self.layer = build_layer(
            record,
            Setting(
                shapes=shapes,
                shards=shards,
                rows=rows,
                dtype=self.dtype,
                layout=self.layout,
                x=self.x,
                parameters=self.parameters,
                gradients=self.gradients if training else None,
                needs_input_gradient=True,
                may_overwrite_input=may_overwrite,
                may_overwrite_gradient=may_overwrite,
                memory=OwnMemory(dtype),
                activation=activation,
            ),
        )
        self.dy = aligned_zeros(self.layout.shape(shards, rows, shapes.output_shape), dtype)
        self.dx = self.layer.prepare_backward(self.dy) if training else self.x

    def forward(self, x: Array) -> Array:
        """x (S, R, *row), rows first whatever the layer's layout; a copy of y likewise."""
        self.x[...] = x if self.layout is Layout.ROWS_FIRST else np.moveaxis(x, 1, -1)
        return self.public(self.layer.forward(self.x, self.streams))

    def backward(self, dy: Array) -> Array:
        """dy (S, R, *row), rows first; a copy of dx likewise; the gradients lie in `gradients`."""
        self.dy[...] = dy if self.layout is Layout.ROWS_FIRST else np.moveaxis(dy, 1, -1)
        return self.public(self.layer.backward(self.dy))

    def public(self, a: Array) -> Array:
        return (a if self.layout is Layout.ROWS_FIRST else np.moveaxis(a, -1, 1)).copy()


def worst_error(
    record: Any, x: Array, *, streams: Streams | None = None, step: float = 1e-6, check_input: bool = True, **options: Any
) -> float:
    """The worst relative error of the backward pass against central differences of sum(y * c), in float64, c random.

    x is (S, R, *row). Every learned number is checked, and every input unless `check_input` is off.
    """
    bench = LayerBench(record, x.shape[2:], shards=x.shape[0], rows=x.shape[1], streams=streams, **options)
    x = x.astype(np.float64)
    y = bench.forward(x)
    c = np.random.default_rng(11).standard_normal(y.shape)
    dx = bench.backward(c)
    learned = [name for name, tensor in bench.shapes.tensors.items() if tensor.role is not Role.STATE]
    gradients = {name: bench.gradients[name].sum(axis=0) for name in learned}
    pairs: list[tuple[Array, Array]] = [(bench.parameters[name], gradients[name]) for name in learned]
    if check_input:
        pairs.append((x, dx))

    def slope(flat: Array, index: int, h: float) -> float:
        kept = flat[index]
        flat[index] = kept + h
        above = math.fsum((bench.forward(x) * c).ravel())
        flat[index] = kept - h
        below = math.fsum((bench.forward(x) * c).ravel())
        flat[index] = kept
        return (above - below) / (2 * h)

    def apart(numerical: float, ours: float, floor: float) -> float:
        return abs(numerical - ours) / max(abs(numerical), abs(ours), floor)

    worst = 0.0
    for values, backward in pairs:
        flat, floor = values.reshape(-1), 1e-3 * float(np.abs(backward).max()) + 1e-9
        for index in range(flat.size):
            ours = float(backward.reshape(-1)[index])
            error = apart(slope(flat, index, step), ours, floor)
            if error >= 1e-7:
                # A longer step rounds less, and its own error is extrapolated away; a kink may be too near for it.
                wide = apart((4 * slope(flat, index, 50 * step) - slope(flat, index, 100 * step)) / 3, ours, floor)
                error = wide if wide < error else error
            # NaN is the worst of all, and nothing is worse.
            worst = error if not error <= worst and not math.isnan(worst) else worst
    return worst


def stack_is_loop(record: Any, x: Array, **options: Any) -> None:
    """Asserts, bitwise in float32, that a stack of shards gives each shard what it gets alone: y, dx and the gradients."""
    x = x.astype(np.float32)
    stack = LayerBench(record, x.shape[2:], shards=x.shape[0], rows=x.shape[1], dtype=np.float32, **options)
    y = stack.forward(x)
    dy = np.random.default_rng(12).standard_normal(y.shape).astype(np.float32)
    dx = stack.backward(dy)
    streams = options.pop("streams", None)
    for shard in range(len(x)):
        own = Streams(streams.seed, streams.step, streams.first_shard + shard) if streams else None
        alone = LayerBench(record, x.shape[2:], shards=1, rows=x.shape[1], dtype=np.float32, streams=own, **options)
        assert alone.forward(x[shard : shard + 1]).tobytes() == y[shard].tobytes()
        assert alone.backward(dy[shard : shard + 1]).tobytes() == dx[shard].tobytes()
        for name, gradient in stack.gradients.items():
            assert alone.gradients[name][0].tobytes() == gradient[shard].tobytes(), name
