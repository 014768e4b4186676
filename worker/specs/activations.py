"""The records of the elementwise layers, dropout among them, and of softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from lockstep.v1.model_pb2 import Gelu
from worker.specs.records import LayerReader, LayerRecord, given_or_default


@final
@dataclass(frozen=True, slots=True)
class ReluRecord(LayerRecord):
    """max(x, 0)."""

    kind: ClassVar[str] = "relu"


@final
@dataclass(frozen=True, slots=True)
class LeakyReluRecord(LayerRecord):
    """x above zero, slope * x below."""

    kind: ClassVar[str] = "leaky_relu"
    slope: float


@final
@dataclass(frozen=True, slots=True)
class EluRecord(LayerRecord):
    """x above zero, alpha * (exp(x) - 1) below."""

    kind: ClassVar[str] = "elu"
    alpha: float


@final
@dataclass(frozen=True, slots=True)
class SiluRecord(LayerRecord):
    """x * sigmoid(x)."""

    kind: ClassVar[str] = "silu"


@final
@dataclass(frozen=True, slots=True)
class GeluRecord(LayerRecord):
    """x * Phi(x); `exact` by the error function, else by a hyperbolic tangent."""

    kind: ClassVar[str] = "gelu"
    exact: bool


@final
@dataclass(frozen=True, slots=True)
class SigmoidRecord(LayerRecord):
    """1 / (1 + exp(-x))."""

    kind: ClassVar[str] = "sigmoid"


@final
@dataclass(frozen=True, slots=True)
class TanhRecord(LayerRecord):
    """Hyperbolic tangent."""

    kind: ClassVar[str] = "tanh"


@final
@dataclass(frozen=True, slots=True)
class SoftplusRecord(LayerRecord):
    """log(1 + exp(x))."""

    kind: ClassVar[str] = "softplus"


@final
@dataclass(frozen=True, slots=True)
class SoftmaxRecord(LayerRecord):
    """exp(x) over its sum along the last axis."""

    kind: ClassVar[str] = "softmax"


@final
@dataclass(frozen=True, slots=True)
class DropoutRecord(LayerRecord):
    """In training each number is 0 with probability `rate`, the others are divided by 1 - rate."""

    kind: ClassVar[str] = "dropout"
    rate: float


READERS: dict[str, LayerReader] = {
    "relu": lambda message, reading: ReluRecord(),
    "leaky_relu": lambda message, reading: LeakyReluRecord(given_or_default(message.leaky_relu, "slope")),
    "elu": lambda message, reading: EluRecord(given_or_default(message.elu, "alpha")),
    "silu": lambda message, reading: SiluRecord(),
    "gelu": lambda message, reading: GeluRecord(message.gelu.form != Gelu.TANH),
    "sigmoid": lambda message, reading: SigmoidRecord(),
    "tanh": lambda message, reading: TanhRecord(),
    "softplus": lambda message, reading: SoftplusRecord(),
    "softmax": lambda message, reading: SoftmaxRecord(),
    "dropout": lambda message, reading: DropoutRecord(message.dropout.rate),
}
