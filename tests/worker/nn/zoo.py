"""Whole networks, written as jobs write them, that hold every kind of layer and loss between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from google.protobuf.json_format import ParseDict
from numpy.typing import DTypeLike

from lockstep.v1.model_pb2 import ModelSpec
from lockstep.v1.optimization_pb2 import Loss
from worker.nn.model import Model, Stack
from worker.specs import Architecture, LossRecord, architecture, loss_record


@final
@dataclass(frozen=True, slots=True)
class Animal:
    """A network and its loss. `inputs` is the shape of a row; with `vocabulary` its numbers are indices below it."""

    inputs: tuple[int, ...]
    layers: list[Any]
    loss: Any
    vocabulary: int = 0

    @property
    def architecture(self) -> Architecture:
        return architecture(ParseDict({"layers": self.layers}, ModelSpec()), self.inputs)

    @property
    def loss_record(self) -> LossRecord:
        return loss_record(ParseDict(self.loss, Loss()))

    def model(self, **options: Any) -> Model:
        return Model(self.architecture, self.loss_record, **options)

    def draw(self, rng: np.random.Generator, shards: int, rows: int, dtype: DTypeLike = np.float32) -> Stack:
        """x (S, R, *inputs) and targets that fit."""
        model = self.model(dtype=dtype)
        lead = (shards, rows)
        if self.vocabulary:
            x = rng.integers(0, self.vocabulary, (*lead, *self.inputs)).astype(dtype)
        else:
            x = rng.standard_normal((*lead, *self.inputs)).astype(dtype)
        shape = (*lead, *model.target_shape)
        if model.target_dtype.kind == "i":
            return x, rng.integers(0, 2 if "binary_cross_entropy" in self.loss else 3, shape)
        if "binary_cross_entropy" in self.loss:
            return x, rng.random(shape).astype(dtype)
        return x, rng.standard_normal(shape).astype(dtype)


def _conv(filters: int, size: int = 3, **options: Any) -> Any:
    return {"conv2d": {"filters": filters, "kernel": {"height": size, "width": size}, **options}}


def _dense(units: int, **options: Any) -> Any:
    return {"dense": {"units": units, **options}}


def _attention(heads: int, **options: Any) -> Any:
    return {"attention": {"heads": heads, **options}}


SAME: Any = {"padding": {"same": {}}}
RELU: Any = {"relu": {}}
NORM: Any = {"batch_norm": {}}
TWO = {"height": 2, "width": 2}
CLASSES: Any = {"softmax_cross_entropy": {}}

ZOO: dict[str, Animal] = {
    "dense": Animal(
        (6,), [_dense(9), RELU, {"dropout": {"rate": 0.3}}, _dense(7, bias=False), {"elu": {}}, _dense(3)], CLASSES
    ),
    "rectifiers": Animal(
        (5,),
        [_dense(8), {"leaky_relu": {}}, _dense(8), {"elu": {"alpha": 0.7}}, _dense(8), {"softplus": {}}, _dense(4)],
        {"mean_squared_error": {}, "l2": 0.01},
    ),
    "sigmoids": Animal(
        (5,),
        [_dense(8), {"sigmoid": {}}, _dense(8), {"tanh": {}}, _dense(8), {"silu": {}}, _dense(8), {"softmax": {}}, _dense(4)],
        {"mean_squared_error": {}},
    ),
    "error functions": Animal((5,), [_dense(8), {"gelu": {}}, _dense(8), {"gelu": {"form": "TANH"}}, _dense(3)], CLASSES),
    "letters": Animal(
        (12, 12, 1),
        [
            _conv(4, 5),
            RELU,
            {"max_pool": {"window": TWO}},
            _conv(5, 3, **SAME),
            RELU,
            {"average_pool": {"window": TWO}},
            {"flatten": {}},
            _dense(11),
            {"tanh": {}},
            _dense(3),
        ],
        {"softmax_cross_entropy": {"label_smoothing": 0.1, "class_weights": [1, 2, 0.5]}},
    ),
    "residual images": Animal(
        (8, 8, 3),
        [
            _conv(4, bias=False, **SAME),
            NORM,
            RELU,
            {"residual": {"layers": [_conv(4, bias=False, **SAME), NORM, RELU, _conv(4, bias=False, **SAME), NORM]}},
            RELU,
            {
                "residual": {
                    "layers": [_conv(6, stride=TWO, bias=False, **SAME), NORM, RELU, _conv(6, groups=2, **SAME)],
                    "shortcut": [_conv(6, 1, stride=TWO)],
                }
            },
            _conv(6, groups=6, dilation=TWO, **SAME),
            RELU,
            {"global_pool": {}},
            {"dropout": {"rate": 0.2}},
            _dense(3),
        ],
        CLASSES,
    ),
    "windows": Animal(
        (9, 7, 2),
        [
            {"max_pool": {"window": {"height": 3, "width": 3}, "stride": TWO, **SAME}},
            _conv(3, 2, padding={"explicit": {"top": 1, "right": 1}}),
            {"silu": {}},
            {"average_pool": {"window": {"height": 3, "width": 2}, "stride": {"height": 1, "width": 1}, **SAME}},
            {"parallel": {"branches": [{"layers": [_conv(2, 1)]}, {"layers": []}], "join": "CONCATENATE"}},
            {"global_pool": {"reduction": "MAX"}},
            _dense(4),
        ],
        {"huber": {"delta": 0.5}, "l1": 0.001},
    ),
    "signals": Animal(
        (20, 3),
        [
            {"conv1d": {"filters": 6, "kernel": 5, "stride": 2, "bias": False}},
            NORM,
            RELU,
            {"conv1d": {"filters": 4, "kernel": 3, "dilation": 2}},
            {"rms_norm": {}},
            {"flatten": {}},
            _dense(1),
        ],
        {"binary_cross_entropy": {}},
    ),
    "transformer": Animal(
        (10,),
        [
            {"embedding": {"vocabulary": 11, "width": 8}},
            {"positions": {}},
            {"residual": {"layers": [{"layer_norm": {}}, _attention(2, padding_index=0), {"dropout": {"rate": 0.1}}]}},
            {"residual": {"layers": [{"layer_norm": {}}, _dense(16), {"gelu": {}}, _dense(8)]}},
            {"layer_norm": {}},
            {"global_pool": {}},
            _dense(3),
        ],
        CLASSES,
        vocabulary=11,
    ),
    "language": Animal(
        (7,),
        [
            {"embedding": {"vocabulary": 5, "width": 6}},
            {"positions": {"form": "SINUSOIDAL"}},
            {"residual": {"layers": [{"rms_norm": {}}, _attention(3, causal=True)]}},
            _dense(5),
        ],
        {"softmax_cross_entropy": {"ignored_label": 0}},
        vocabulary=5,
    ),
    "lstm": Animal(
        (6, 4), [{"lstm": {"units": 5, "sequence": True}}, {"lstm": {"units": 4}}, _dense(2)], {"mean_absolute_error": {}}
    ),
    "gru": Animal(
        (6,),
        [
            {"embedding": {"vocabulary": 9, "width": 4}},
            {"gru": {"units": 5, "sequence": True}},
            {"gru": {"units": 4}},
            _dense(2),
        ],
        {"binary_cross_entropy": {}},
        vocabulary=9,
    ),
    "shapes": Animal(
        (24,),
        [{"reshape": {"shape": [4, 6]}}, _dense(6), RELU, {"reshape": {"shape": [2, 2, 6]}}, _conv(3, 2), {"flatten": {}}],
        {"mean_squared_error": {}},
    ),
}
