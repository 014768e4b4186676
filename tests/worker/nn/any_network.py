"""Networks made up at random from a seed: any layers with any options, one in another, over odd and tiny shapes."""

from __future__ import annotations

import math
import random
from typing import Any, final

import numpy as np
from google.protobuf.json_format import ParseDict

from lockstep.contract.errors import UserError
from lockstep.v1.model_pb2 import ModelSpec
from tests.worker.nn.zoo import Animal
from worker.nn.model import Model, Stack
from worker.nn.shapes import layer_shapes
from worker.specs import architecture

# Numbers per row above which a made-up layer is dropped.
MOST = 800

ELEMENTWISE: list[Any] = [
    {"relu": {}},
    {"leaky_relu": {"slope": 0}},
    {"leaky_relu": {"slope": 0.2}},
    {"elu": {"alpha": 3}},
    {"silu": {}},
    {"gelu": {}},
    {"gelu": {"form": "TANH"}},
    {"sigmoid": {}},
    {"tanh": {}},
    {"softplus": {}},
    {"softmax": {}},
    {"dropout": {"rate": 0.4}},
    {"dropout": {"rate": 0}},
    {"batch_norm": {"momentum": 0}},
    {"layer_norm": {"epsilon": 0.5}},
    {"rms_norm": {"epsilon": 0.1}},
]
# By the axes of a row.
KINDS = {
    1: ["reshape"],
    2: ["conv1d", "attention", "lstm", "gru", "positions", "global_pool", "reshape"],
    3: ["conv2d", "conv2d", "max_pool", "average_pool", "global_pool", "reshape"],
}


@final
class Maker:
    """Makes one network after another from one stream of random numbers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def animal(self) -> Animal:
        """A network whose shapes meet, with a loss that fits."""
        draw = self.random.choice
        while True:
            vocabulary = draw([0, 0, 0, 1, 6])
            inputs = (
                draw([(1,), (7,), (1, 1), (5, 3), (8, 1), (1, 1, 1), (6, 5, 2), (4, 9, 4)])
                if not vocabulary
                else (draw([1, 5]),)
            )
            layers: list[Any] = [{"embedding": {"vocabulary": vocabulary, "width": draw([1, 4])}}] if vocabulary else []
            layers += self._chain(self._output(layers, inputs) or inputs, 0, draw([1, 2, 3, 5]))
            output = self._output(layers, inputs)
            if output is None:
                continue
            if len(output) > 2:
                layers.append({"flatten": {}})
            layers.append({"dense": {"units": draw([1, 2, 5])}})
            output = self._output(layers, inputs)
            assert output is not None
            return Animal(inputs, layers, self._loss(output[-1]), vocabulary)

    def _loss(self, outputs: int) -> Any:
        draw = self.random.choice
        kind = draw(["softmax_cross_entropy", "softmax_cross_entropy", "mean_squared_error", "binary_cross_entropy", "huber"])
        if kind != "softmax_cross_entropy":
            return {kind: {}}
        options: dict[str, Any] = {"label_smoothing": draw([0, 0.1])}
        if draw([True, False]):
            options["class_weights"] = [draw([0.1, 1, 7]) for _ in range(outputs)]
        if draw([True, False]):
            options["ignored_label"] = draw([-100, 0, outputs])
        return {kind: options}

    def _output(self, layers: list[Any], inputs: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape that the layers give; None where they cannot be."""
        if not layers:
            return inputs
        try:
            return layer_shapes(architecture(ParseDict({"layers": layers}, ModelSpec()), inputs))[-1].output_shape
        except UserError as error:
            assert all(violation.place.startswith("model.layers[") for violation in error.violations)
            return None

    def _chain(self, shape: tuple[int, ...], depth: int, length: int) -> list[Any]:
        layers: list[Any] = []
        for _ in range(length):
            layer = self._layer(shape, depth)
            output = self._output([layer], shape)
            if output is not None and math.prod(output) <= MOST:
                layers.append(layer)
                shape = output
        return layers

    def _layer(self, shape: tuple[int, ...], depth: int) -> Any:
        draw = self.random.choice
        kinds = ["elementwise", "elementwise", "dense", "flatten", *KINDS.get(len(shape), [])]
        kind = draw(kinds + ["residual", "parallel"] * (depth < 2))
        if kind == "elementwise":
            return draw(ELEMENTWISE)
        if kind in ("residual", "parallel"):
            return self._joined(kind, shape, depth)
        if kind in ("conv1d", "conv2d"):
            return {kind: self._convolution(shape, flat=kind == "conv1d")}
        if kind in ("max_pool", "average_pool"):
            window = self._size(*shape[:2])
            return {kind: {"window": window, "stride": self._size(3, 5), "padding": draw([{"same": {}}, {"valid": {}}])}}
        options: dict[str, Any] = {
            "dense": {"units": draw([1, 2, 3, 8]), "bias": draw([True, False])},
            "global_pool": {"reduction": draw(["MEAN", "MAX"])},
            "positions": {"form": draw(["LEARNED", "SINUSOIDAL"])},
            "lstm": {"units": draw([1, 3]), "sequence": draw([True, False])},
            "gru": {"units": draw([1, 4]), "sequence": draw([True, False])},
            "attention": {"heads": self._divisor(shape[-1]), "causal": draw([True, False])},
            "reshape": {"shape": self._factors(math.prod(shape))},
        }
        return {kind: options.get(kind, {})}

    def _convolution(self, shape: tuple[int, ...], flat: bool) -> Any:
        draw, channels = self.random.choice, shape[-1]
        groups = draw([1, self._divisor(channels), channels])
        border = {side: draw([0, 0, 1, 2, 9]) for side in ("top", "bottom", "left", "right")}
        options: dict[str, Any] = {
            "filters": groups * draw([1, 1, 2]),
            "groups": groups,
            "kernel": self._size(*shape[:2]),
            "stride": draw([self._size(1, 1), self._size(3, 7)]),
            "dilation": draw([self._size(1, 1), self._size(3, 5)]),
            "padding": draw([{"same": {}}, {"valid": {}}, {"explicit": border}]),
            "bias": draw([True, False]),
        }
        if flat:
            options |= {name: options[name]["height"] for name in ("kernel", "stride", "dilation")}
        return options

    def _joined(self, kind: str, shape: tuple[int, ...], depth: int) -> Any:
        """Paths that end in one shape, each by a dense layer."""
        paths = []
        for _ in range(self.random.choice([2, 2, 3])):
            path = self._chain(shape, depth + 1, self.random.choice([0, 1, 1, 2]))
            output = self._output(path, shape)
            if output != shape:
                path += [{"flatten": {}}, {"dense": {"units": math.prod(shape)}}, {"reshape": {"shape": list(shape)}}]
            paths.append(path)
        if kind == "residual":
            return {"residual": {"layers": paths[0] or [{"tanh": {}}], "shortcut": paths[1]}}
        join = self.random.choice(["ADD", "CONCATENATE"])
        return {"parallel": {"branches": [{"layers": path} for path in paths], "join": join}}

    def _size(self, height: int, width: int) -> dict[str, int]:
        draw = self.random.choice
        return {"height": draw([1, min(height, 3), height]), "width": draw([1, min(width, 3), width])}

    def _divisor(self, number: int) -> int:
        return self.random.choice([part for part in range(1, number + 1) if number % part == 0])

    def _factors(self, number: int) -> list[int]:
        first = self._divisor(number)
        second = self._divisor(number // first)
        return self.random.choice([[number], [first, number // first], [first, second, number // first // second]])


def draw_rows(animal: Animal, model: Model, rng: np.random.Generator, shards: int, rows: int) -> Stack:
    """Inputs and targets (S, R, ...), with labels that are ignored where the loss ignores one."""
    lead = (shards, rows)
    x = (
        rng.standard_normal((*lead, *animal.inputs))
        if not animal.vocabulary
        else rng.integers(0, animal.vocabulary, (*lead, *animal.inputs))
    )
    shape = (*lead, *model.target_shape)
    if model.target_dtype.kind == "f":
        return x.astype(model.dtype), rng.random(shape).astype(model.dtype)
    if "binary_cross_entropy" in animal.loss:
        return x.astype(model.dtype), rng.integers(0, 2, shape)
    labels = rng.integers(0, model.predict(x[0, :1].astype(model.dtype)).shape[-1], shape)
    ignored = animal.loss["softmax_cross_entropy"].get("ignored_label")
    return x.astype(model.dtype), labels if ignored is None else np.where(rng.random(shape) < 0.3, ignored, labels)
