"""The networks that are raced, as the layers of a job file, and what is asked of each. Read by both sides: plain Python."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, final

Layers: TypeAlias = list[dict[str, Any]]

InputKind: TypeAlias = Literal["numbers", "image", "tokens", "sequence"]

MOMENTUM = 0.9
MOST_ROWS = 8192
MOST_TABLE_BYTES = 32 << 20


class Net(Protocol):
    """What is trained, by any race: on `rows` made-up rows, whole batches."""

    @property
    def layers(self) -> Layers: ...
    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def input_kind(self) -> InputKind: ...
    @property
    def classes(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...


@final
@dataclass(frozen=True)
class Case:
    """A row of the table. `floor`, `aim` and `default_floor` are of our samples/s over PyTorch's: with the step in one shard,
    what we want of it, and with the default number of shards. The other two: of the sgemm peak, and of PyTorch's memory.
    The learning rate is so large that the first losses tell another update, and so small that they tell no other rounding."""

    name: str
    title: str
    layers: Layers
    input_shape: tuple[int, ...]
    batch: int
    floor: float
    aim: float
    default_floor: float
    input_kind: InputKind = "numbers"
    classes: int = 10
    widths: tuple[int, ...] = ()
    learning_rate: float = 0.02
    peak_floor: float | None = None
    memory_limit: float | None = None

    @property
    def rows(self) -> int:
        """Rows of the table: whole batches, so that each step is alike."""
        most = min(MOST_ROWS, MOST_TABLE_BYTES // (4 * math.prod(self.input_shape)))
        return most // self.batch * self.batch

    @property
    def shards_matter(self) -> bool:
        """Whether the number of shards changes what is computed: batch normalization looks at one shard's rows."""
        return any("batch_norm" in layer for layer in self.layers)

    @property
    def product_flops(self) -> int:
        """Floating-point operations of a step's products, for a dense net: two forward, four backward, no input gradient."""
        pairs = list(zip(self.widths, self.widths[1:], strict=False))
        return sum((6 if at else 4) * self.batch * inputs * units for at, (inputs, units) in enumerate(pairs))


def dense_layers(*widths: int) -> Layers:
    """Dense layers of these widths with a ReLU between each two."""
    layers: Layers = []
    for units in widths:
        layers += [{"dense": {"units": units}}, {"relu": {}}]
    return layers[:-1]


def _square(size: int) -> dict[str, int]:
    return {"height": size, "width": size}


def _padding(size: int) -> dict[str, Any]:
    return {"explicit": {"top": size, "bottom": size, "left": size, "right": size}} if size else {"valid": {}}


def _conv(filters: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = False) -> dict[str, Any]:
    sizes = {"kernel": _square(kernel), "stride": _square(stride), "padding": _padding(padding)}
    return {"conv2d": {"filters": filters, "bias": bias, **sizes}}


def _residual_block(filters: int, stride: int) -> Layers:
    inner = [
        *(_conv(filters, 3, stride, 1), {"batch_norm": {}}, {"relu": {}}),
        *(_conv(filters, 3, 1, 1), {"batch_norm": {}}),
    ]
    shortcut = [_conv(filters, 1, stride), {"batch_norm": {}}] if stride > 1 else []
    return [{"residual": {"layers": inner, "shortcut": shortcut}}, {"relu": {}}]


def _transformer_block(width: int, heads: int) -> Layers:
    attention = [{"layer_norm": {}}, {"attention": {"heads": heads, "causal": True}}]
    feed_forward = [{"layer_norm": {}}, {"dense": {"units": 4 * width}}, {"gelu": {}}, {"dense": {"units": width}}]
    return [{"residual": {"layers": attention}}, {"residual": {"layers": feed_forward}}]


def _dense_case(widths: tuple[int, ...], batch: int, floors: tuple[float, float, float], **more: Any) -> Case:
    name = "-".join(str(width) for width in widths)
    title = f"[{', '.join(str(width) for width in widths)}] b{batch}"
    return Case(name, title, dense_layers(*widths[1:]), widths[:1], batch, *floors, widths=widths, **more)


_POOL = {"max_pool": {"window": _square(2)}}
_LENET: Layers = [
    *(_conv(6, 5, padding=2, bias=True), _POOL, {"relu": {}}),
    *(_conv(16, 5, bias=True), _POOL, {"relu": {}}),
    {"flatten": {}},
    *dense_layers(120, 84, 10),
]
_RESIDUAL: Layers = [
    *(_conv(16, 3, padding=1), {"batch_norm": {}}, {"relu": {}}),
    *_residual_block(16, 1),
    *_residual_block(32, 2),
    *_residual_block(64, 2),
    {"global_pool": {}},
    {"dense": {"units": 10}},
]
_TOKENS = 96
_TRANSFORMER: Layers = [
    *({"embedding": {"vocabulary": _TOKENS, "width": 128}}, {"positions": {}}),
    *_transformer_block(128, 4),
    *_transformer_block(128, 4),
    *({"layer_norm": {}}, {"dense": {"units": _TOKENS}}),
]
_LSTM: Layers = [{"lstm": {"units": 128}}, {"dense": {"units": 10}}]

CASES = (
    _dense_case((64, 64, 10), 32, (5.0, 8.0, 5.0)),
    _dense_case((784, 128, 10), 64, (1.5, 1.8, 1.3)),
    _dense_case((784, 512, 256, 10), 128, (1.08, 1.3, 0.9)),
    _dense_case((784, 1024, 1024, 10), 128, (1.02, 1.15, 0.8), peak_floor=0.75),
    _dense_case((784, 2048, 2048, 2048, 10), 512, (1.0, 1.1, 0.8), learning_rate=0.005, peak_floor=0.85, memory_limit=0.85),
    Case("lenet", "LeNet-like on 28x28, b64", _LENET, (28, 28, 1), 64, 1.2, 1.6, 1.0, "image"),
    Case("residual", "residual CNN on 32x32, b64", _RESIDUAL, (32, 32, 3), 64, 0.85, 1.1, 0.75, "image"),
    Case(
        *("transformer", "transformer, 2 layers, width 128, 4 heads, length 64, b32", _TRANSFORMER, (64,), 32),
        *(0.95, 1.1, 0.95, "tokens", _TOKENS),
    ),
    Case("lstm", "LSTM, width 128, length 64, b64", _LSTM, (64, 128), 64, 0.95, 1.05, 0.9, "sequence", learning_rate=0.2),
)
BY_NAME = {case.name: case for case in CASES}
