"""The layers, one a file, and the table from records to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker.nn.layers.dense import Dense
from worker.nn.layers.flatten import Flatten
from worker.nn.layers.layer import Layer, Setting
from worker.nn.layers.relu import Relu
from worker.specs import DenseRecord, FlattenRecord, ReluRecord

LAYERS: dict[type[Any], type[Layer]] = {
    DenseRecord: Dense,
    FlattenRecord: Flatten,
    ReluRecord: Relu,
}


def build_layer(record: Any, setting: Setting) -> Layer:
    """The layer of a record at one stack shape."""
    make: Callable[[Any, Setting], Layer] = LAYERS[type(record)]
    return make(record, setting)


__all__ = ["LAYERS", "Dense", "Flatten", "Layer", "Relu", "Setting", "build_layer"]
