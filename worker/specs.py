"""The plain records of an Architecture, its loss and its optimizer, made from the messages; no NumPy.

This alone reads `WhichOneof`. Nothing below it knows protobuf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, final

from lockstep.contract.errors import UserError, Violation
from lockstep.v1.model_pb2 import Initializer, Layer, ModelSpec
from lockstep.v1.optimization_pb2 import Loss, Optimizer


@final
@dataclass(frozen=True, slots=True)
class DenseRecord:
    """y = x W + b with W (inputs, units); `initializer` is a key of `worker.nn.initializers.INITIALIZERS`."""

    kind: ClassVar[str] = "dense"
    units: int
    bias: bool
    initializer: str


@final
@dataclass(frozen=True, slots=True)
class ReluRecord:
    """max(x, 0)."""

    kind: ClassVar[str] = "relu"


@final
@dataclass(frozen=True, slots=True)
class FlattenRecord:
    """All axes of a row as one, in C order."""

    kind: ClassVar[str] = "flatten"


LayerRecord: TypeAlias = DenseRecord | ReluRecord | FlattenRecord


@final
@dataclass(frozen=True, slots=True)
class Architecture:
    """The layers in the order of the forward pass, and the shape of one input row."""

    layers: tuple[LayerRecord, ...]
    input_shape: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True)
class SoftmaxCrossEntropyRecord:
    """-log softmax(z)[label]."""

    kind: ClassVar[str] = "softmax_cross_entropy"


@final
@dataclass(frozen=True, slots=True)
class MeanSquaredErrorRecord:
    """Mean over the outputs of (y - target)^2."""

    kind: ClassVar[str] = "mean_squared_error"


LossRecord: TypeAlias = SoftmaxCrossEntropyRecord | MeanSquaredErrorRecord


@final
@dataclass(frozen=True, slots=True)
class ConstantSchedule:
    """The factor is 1 at every step."""

    kind: ClassVar[str] = "constant"


ScheduleRecord: TypeAlias = ConstantSchedule


@final
@dataclass(frozen=True, slots=True)
class SgdRecord:
    """w -= learning_rate * g."""

    kind: ClassVar[str] = "sgd"
    learning_rate: float
    schedule: ScheduleRecord


@final
@dataclass(frozen=True, slots=True)
class MomentumRecord:
    """v = momentum * v + g; w -= learning_rate * v."""

    kind: ClassVar[str] = "momentum"
    learning_rate: float
    momentum: float
    schedule: ScheduleRecord


OptimizerRecord: TypeAlias = SgdRecord | MomentumRecord

BUILT_INITIALIZERS = ("glorot_uniform", "he_normal", "lecun_normal", "zeros")


def _not_built(place: str, what: str, kind: str, built: Iterable[str]) -> Violation:
    names = ", ".join(sorted(built))
    if not kind:
        return Violation(place, "", f"exactly one {what} must be given: {names}", "INVALID_FIELD")
    reason = f"{what.upper()}_NOT_BUILT"
    return Violation(f"{place}.{kind}", "", f"this {what} is not built yet; use one of: {names}", reason)


def _initializer(initializer: Initializer | None, follower: str, place: str, wrong: list[Violation]) -> str:
    """The initializer's key: as given, else he_normal before relu and glorot_uniform before all else."""
    if initializer is None:
        return "he_normal" if follower == "relu" else "glorot_uniform"
    kind = initializer.WhichOneof("kind") or ""
    if kind not in BUILT_INITIALIZERS:
        wrong.append(_not_built(f"{place}.initializer", "initializer", kind, BUILT_INITIALIZERS))
    return kind


def _dense(message: Layer, follower: str, place: str, wrong: list[Violation]) -> LayerRecord:
    dense = message.dense
    given = dense.initializer if dense.HasField("initializer") else None
    return DenseRecord(
        units=dense.units,
        bias=dense.bias if dense.HasField("bias") else True,
        initializer=_initializer(given, follower, place, wrong),
    )


def _relu(message: Layer, follower: str, place: str, wrong: list[Violation]) -> LayerRecord:
    return ReluRecord()


def _flatten(message: Layer, follower: str, place: str, wrong: list[Violation]) -> LayerRecord:
    return FlattenRecord()


# A layer kind is added here, in worker/nn/shapes.py and in worker/nn/layers/.
_LAYERS: dict[str, Callable[[Layer, str, str, list[Violation]], LayerRecord]] = {
    "dense": _dense,
    "relu": _relu,
    "flatten": _flatten,
}


def architecture(model: ModelSpec, input_shape: tuple[int, ...]) -> Architecture:
    """The records of a model whose input rows have `input_shape`.

    Raises UserError with every layer, initializer or option that is not built, each at its place ("model.layers[2].conv2d").
    """
    wrong: list[Violation] = []
    kinds = [layer.WhichOneof("kind") or "" for layer in model.layers]
    records = []
    if not kinds:
        wrong.append(Violation("model.layers", "no layers", "at least one layer must be given"))
    for index, (layer, kind) in enumerate(zip(model.layers, kinds, strict=True)):
        place = f"model.layers[{index}]"
        make = _LAYERS.get(kind)
        if make is None:
            wrong.append(_not_built(place, "layer", kind, _LAYERS))
            continue
        follower = kinds[index + 1] if index + 1 < len(kinds) else ""
        records.append(make(layer, follower, f"{place}.{kind}", wrong))
    if wrong:
        raise UserError(wrong)
    return Architecture(tuple(records), tuple(int(size) for size in input_shape))


def _softmax_cross_entropy(loss: Loss, wrong: list[Violation]) -> LossRecord:
    options = loss.softmax_cross_entropy
    place = "loss.softmax_cross_entropy"
    if options.label_smoothing:
        wrong.append(_option(f"{place}.label_smoothing", options.label_smoothing))
    if options.class_weights:
        wrong.append(_option(f"{place}.class_weights", f"{len(options.class_weights)} weights"))
    if options.HasField("ignored_label"):
        wrong.append(_option(f"{place}.ignored_label", options.ignored_label))
    return SoftmaxCrossEntropyRecord()


def _mean_squared_error(loss: Loss, wrong: list[Violation]) -> LossRecord:
    return MeanSquaredErrorRecord()


_LOSSES: dict[str, Callable[[Loss, list[Violation]], LossRecord]] = {
    "softmax_cross_entropy": _softmax_cross_entropy,
    "mean_squared_error": _mean_squared_error,
}


def _option(place: str, value: object) -> Violation:
    return Violation(place, str(value), "this option is not built yet; leave it out", "OPTION_NOT_BUILT")


def loss_record(loss: Loss) -> LossRecord:
    """The record of a loss. Raises UserError for a kind or an option that is not built."""
    wrong: list[Violation] = []
    kind = loss.WhichOneof("kind") or ""
    make = _LOSSES.get(kind)
    record = make(loss, wrong) if make else None
    if record is None:
        wrong.append(_not_built("loss", "loss", kind, _LOSSES))
    for name in ("l1", "l2"):
        if getattr(loss, name):
            wrong.append(_option(f"loss.{name}", getattr(loss, name)))
    if wrong or record is None:
        raise UserError(wrong)
    return record


def _rate(place: str, rate: float, wrong: list[Violation]) -> float:
    if not (rate > 0 and math.isfinite(rate)):
        wrong.append(Violation(f"{place}.learning_rate", str(rate), "it must be above 0 and finite"))
    return rate


def _sgd(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    return SgdRecord(_rate("optimizer.sgd", optimizer.sgd.learning_rate, wrong), schedule)


def _momentum(optimizer: Optimizer, schedule: ScheduleRecord, wrong: list[Violation]) -> OptimizerRecord:
    message = optimizer.momentum
    momentum = message.momentum if message.HasField("momentum") else 0.9
    if not 0 <= momentum < 1:
        wrong.append(Violation("optimizer.momentum.momentum", str(momentum), "it must be at least 0 and below 1"))
    return MomentumRecord(_rate("optimizer.momentum", message.learning_rate, wrong), momentum, schedule)


_OPTIMIZERS: dict[str, Callable[[Optimizer, ScheduleRecord, list[Violation]], OptimizerRecord]] = {
    "sgd": _sgd,
    "momentum": _momentum,
}

_SCHEDULES: dict[str, Callable[[], ScheduleRecord]] = {"constant": ConstantSchedule}


def optimizer_record(optimizer: Optimizer) -> OptimizerRecord:
    """The record of an optimizer with its schedule. Raises UserError for what is not built or out of range."""
    wrong: list[Violation] = []
    schedule: ScheduleRecord = ConstantSchedule()
    if optimizer.HasField("schedule"):
        shape = optimizer.schedule.WhichOneof("kind") or "constant"
        if shape in _SCHEDULES:
            schedule = _SCHEDULES[shape]()
        else:
            wrong.append(_not_built("optimizer.schedule", "schedule", shape, _SCHEDULES))
        if optimizer.schedule.warmup_steps:
            wrong.append(_option("optimizer.schedule.warmup_steps", optimizer.schedule.warmup_steps))
    if optimizer.HasField("clipping"):
        wrong.append(_option("optimizer.clipping", optimizer.clipping.WhichOneof("kind") or "nothing"))
    kind = optimizer.WhichOneof("kind") or ""
    make = _OPTIMIZERS.get(kind)
    record = make(optimizer, schedule, wrong) if make else None
    if record is None:
        wrong.append(_not_built("optimizer", "optimizer", kind, _OPTIMIZERS))
    if wrong or record is None:
        raise UserError(wrong)
    return record
