"""The layers, one family a file, and the table from records to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker.nn.layers.attention import Attention
from worker.nn.layers.average_pool import AveragePool
from worker.nn.layers.batch_norm import BatchNorm
from worker.nn.layers.convolution import Convolution
from worker.nn.layers.dense import Dense
from worker.nn.layers.dropout import Dropout
from worker.nn.layers.embedding import Embedding
from worker.nn.layers.gelu import Gelu
from worker.nn.layers.global_pool import GlobalMax, GlobalMean
from worker.nn.layers.gru import Gru
from worker.nn.layers.layer import Layer, Layout, Memory, Setting
from worker.nn.layers.layer_norm import LayerNorm
from worker.nn.layers.lstm import Lstm
from worker.nn.layers.max_pool import MaxPool
from worker.nn.layers.positions import Positions
from worker.nn.layers.positionwise_dense import PositionwiseDense
from worker.nn.layers.rectifiers import Elu, LeakyRelu
from worker.nn.layers.relu import Relu
from worker.nn.layers.reshape import Reshape
from worker.nn.layers.rms_norm import RmsNorm
from worker.nn.layers.sigmoids import Sigmoid, Silu, Softplus, Tanh
from worker.nn.layers.softmax import Softmax
from worker.specs import (
    AttentionRecord,
    AveragePoolRecord,
    BatchNormRecord,
    Conv1dRecord,
    Conv2dRecord,
    DenseRecord,
    DropoutRecord,
    EluRecord,
    EmbeddingRecord,
    FlattenRecord,
    GeluRecord,
    GlobalMaxRecord,
    GlobalMeanRecord,
    GruRecord,
    LayerNormRecord,
    LeakyReluRecord,
    LstmRecord,
    MaxPoolRecord,
    PositionsRecord,
    ReluRecord,
    ReshapeRecord,
    RmsNormRecord,
    SigmoidRecord,
    SiluRecord,
    SoftmaxRecord,
    SoftplusRecord,
    TanhRecord,
)

# From the type of a record to the class that computes it on input rows of some shape.
LAYERS: dict[type[Any], Callable[[tuple[int, ...]], type[Layer]]] = {
    DenseRecord: lambda row: Dense if len(row) == 1 else PositionwiseDense,
    FlattenRecord: lambda row: Reshape,
    ReshapeRecord: lambda row: Reshape,
    ReluRecord: lambda row: Relu,
    DropoutRecord: lambda row: Dropout,
    LeakyReluRecord: lambda row: LeakyRelu,
    EluRecord: lambda row: Elu,
    SiluRecord: lambda row: Silu,
    GeluRecord: lambda row: Gelu,
    SigmoidRecord: lambda row: Sigmoid,
    TanhRecord: lambda row: Tanh,
    SoftplusRecord: lambda row: Softplus,
    SoftmaxRecord: lambda row: Softmax,
    LstmRecord: lambda row: Lstm,
    GruRecord: lambda row: Gru,
    EmbeddingRecord: lambda row: Embedding,
    PositionsRecord: lambda row: Positions,
    AttentionRecord: lambda row: Attention,
    BatchNormRecord: lambda row: BatchNorm,
    LayerNormRecord: lambda row: LayerNorm,
    RmsNormRecord: lambda row: RmsNorm,
    Conv2dRecord: lambda row: Convolution,
    Conv1dRecord: lambda row: Convolution,
    MaxPoolRecord: lambda row: MaxPool,
    AveragePoolRecord: lambda row: AveragePool,
    GlobalMeanRecord: lambda row: GlobalMean,
    GlobalMaxRecord: lambda row: GlobalMax,
}


def layer_class(record: Any, row: tuple[int, ...]) -> type[Layer]:
    """The class that computes a record on input rows of shape `row`."""
    return LAYERS[type(record)](row)


def build_layer(record: Any, setting: Setting) -> Layer:
    """The layer of a record at one stack shape."""
    make: Callable[[Any, Setting], Layer] = layer_class(record, setting.shapes.input_shape)
    return make(record, setting)


__all__ = [
    "LAYERS",
    "Dense",
    "Layer",
    "Layout",
    "Memory",
    "PositionwiseDense",
    "Relu",
    "Setting",
    "build_layer",
    "layer_class",
]
