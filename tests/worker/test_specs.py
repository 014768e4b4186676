"""From messages to records: defaults, and what is refused, with place and remedy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from google.protobuf.json_format import Parse, ParseDict

from lockstep.contract.errors import UserError
from lockstep.v1.model_pb2 import Initializer, Layer, ModelSpec
from lockstep.v1.optimization_pb2 import Loss, Optimizer
from worker.specs import (
    AdagradRecord,
    AdamRecord,
    AdamWRecord,
    Architecture,
    BinaryCrossEntropyRecord,
    ClippingRecord,
    ConstantSchedule,
    CosineSchedule,
    DenseRecord,
    ExponentialSchedule,
    FlattenRecord,
    HuberRecord,
    InitializerRecord,
    LambRecord,
    MeanAbsoluteErrorRecord,
    MeanSquaredErrorRecord,
    MomentumRecord,
    NesterovRecord,
    OneCycleSchedule,
    ParallelRecord,
    PenaltyRecord,
    PlateauSchedule,
    PolynomialSchedule,
    ReluRecord,
    ResidualRecord,
    RmsPropRecord,
    SgdRecord,
    SoftmaxCrossEntropyRecord,
    StepSchedule,
    architecture,
    clipping_record,
    loss_record,
    optimizer_record,
    penalty_record,
)


def layer(text: str) -> Layer:
    """A layer from protobuf JSON."""
    return Parse(text, Layer())


def loss(**fields: Any) -> Loss:
    """A loss from the fields of its protobuf JSON."""
    return ParseDict(fields, Loss())


def optimizer(**fields: Any) -> Optimizer:
    """An optimizer from the fields of its protobuf JSON."""
    return ParseDict(fields, Optimizer())


def violations(raised: pytest.ExceptionInfo[UserError]) -> list[tuple[str, str]]:
    return [(violation.place, violation.reason) for violation in raised.value.violations]


def test_layers_and_defaults() -> None:
    model = ModelSpec(layers=[layer('{"flatten": {}}'), layer('{"dense": {"units": 8}}'), layer('{"relu": {}}')])
    model.layers.append(layer('{"dense": {"units": 4, "bias": false, "initializer": {"lecun_normal": {}}}}'))
    model.layers.append(layer('{"dense": {"units": 3}}'))
    assert architecture(model, (2, 5)) == Architecture(
        (
            FlattenRecord(),
            DenseRecord(8, True, InitializerRecord("he_normal")),
            ReluRecord(),
            DenseRecord(4, False, InitializerRecord("lecun_normal")),
            DenseRecord(3, True, InitializerRecord("glorot_uniform")),
        ),
        (2, 5),
    )


def test_layers_inside_layers() -> None:
    inner = '{"residual": {"layers": [{"dense": {"units": 5}}, {"relu": {}}], "shortcut": [{"dense": {"units": 5}}]}}'
    branches = '{"parallel": {"join": "ADD", "branches": [{"layers": [{"relu": {}}]}, {}]}}'
    he, glorot = InitializerRecord("he_normal"), InitializerRecord("glorot_uniform")
    assert architecture(ModelSpec(layers=[layer(inner), layer(branches)]), (3,)).layers == (
        ResidualRecord((DenseRecord(5, True, he), ReluRecord()), (DenseRecord(5, True, glorot),)),
        ParallelRecord(((ReluRecord(),), ()), "add"),
    )


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(UserError) as raised:
        architecture(ModelSpec(layers=[Layer(), layer('{"relu": {}}'), layer('{"residual": {"layers": [{}]}}')]), (8,))
    assert violations(raised) == [
        ("model.layers[0]", "INVALID_FIELD"),
        ("model.layers[2].residual.layers[0]", "INVALID_FIELD"),
    ]
    assert "exactly one layer must be given: attention, average_pool, batch_norm, " in str(raised.value)


def test_layers_lie_only_so_deep() -> None:
    deep = '{"relu": {}}'
    for _ in range(9):
        deep = f'{{"residual": {{"layers": [{deep}]}}}}'
    with pytest.raises(UserError) as raised:
        architecture(ModelSpec(layers=[layer(deep)]), (8,))
    assert [reason for _, reason in violations(raised)] == ["MODEL_TOO_DEEP"]


def test_every_layer_of_the_contract_is_built_or_refused() -> None:
    for field in Layer.DESCRIPTOR.oneofs_by_name["kind"].fields:
        message = Layer()
        getattr(message, field.name).SetInParent()
        try:
            (record,) = architecture(ModelSpec(layers=[message]), (4,)).layers
            assert record.kind == field.name
        except UserError as error:
            assert [v.place for v in error.violations] == [f"model.layers[0].{field.name}"]


def test_no_layers_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.layers: got no layers"):
        architecture(ModelSpec(), (4,))


def test_an_empty_initializer_is_refused() -> None:
    model = ModelSpec(layers=[layer('{"dense": {"units": 4}}')])
    model.layers[0].dense.initializer.CopyFrom(Initializer())
    with pytest.raises(UserError, match=r"model\.layers\[0\]\.dense\.initializer: exactly one initializer must be given"):
        architecture(model, (4,))


def test_losses() -> None:
    assert loss_record(loss(softmax_cross_entropy={})) == SoftmaxCrossEntropyRecord()
    assert loss_record(loss(softmax_cross_entropy={"label_smoothing": 0.0}, l1=0.0)) == SoftmaxCrossEntropyRecord()
    given = loss(softmax_cross_entropy={"label_smoothing": 0.1, "class_weights": [1, 2], "ignored_label": 0})
    assert loss_record(given) == SoftmaxCrossEntropyRecord(0.1, (1, 2), 0)
    assert loss_record(loss(softmax_cross_entropy={"ignored_label": -1})) == SoftmaxCrossEntropyRecord(ignored_label=-1)
    assert loss_record(loss(mean_squared_error={})) == MeanSquaredErrorRecord()
    assert loss_record(loss(mean_absolute_error={})) == MeanAbsoluteErrorRecord()
    assert loss_record(loss(binary_cross_entropy={})) == BinaryCrossEntropyRecord()
    assert loss_record(loss(huber={})) == HuberRecord(1.0)
    assert loss_record(loss(huber={"delta": 0.5})) == HuberRecord(0.5)


def test_penalties() -> None:
    assert penalty_record(loss(mean_squared_error={})) == PenaltyRecord(0, 0)
    assert penalty_record(loss(mean_squared_error={}, l1=0.1, l2=0.2)) == PenaltyRecord(0.1, 0.2)


def test_no_loss_is_refused() -> None:
    with pytest.raises(UserError) as raised:
        loss_record(Loss())
    assert violations(raised) == [("loss", "INVALID_FIELD")]


def test_every_loss_of_the_contract_is_built() -> None:
    for field in Loss.DESCRIPTOR.oneofs_by_name["kind"].fields:
        message = Loss()
        getattr(message, field.name).SetInParent()
        assert loss_record(message).kind == field.name


def test_wrong_options_of_a_loss_are_refused_at_once() -> None:
    given = loss(softmax_cross_entropy={"label_smoothing": 1.0, "class_weights": [1, 0, "NaN", "Infinity"]})
    with pytest.raises(UserError) as raised:
        loss_record(given)
    places = ["label_smoothing", "class_weights[1]", "class_weights[2]", "class_weights[3]"]
    assert violations(raised) == [(f"loss.softmax_cross_entropy.{place}", "INVALID_FIELD") for place in places]
    with pytest.raises(UserError, match=r"loss\.huber\.delta: got 0\.0; it must be above 0 and finite"):
        loss_record(loss(huber={"delta": 0.0}))


def test_optimizers_and_defaults() -> None:
    assert optimizer_record(optimizer(sgd={"learning_rate": 0.1})) == SgdRecord(0.1, ConstantSchedule())
    assert optimizer_record(optimizer(momentum={"learning_rate": 0.1})) == MomentumRecord(0.1, 0.9, ConstantSchedule())
    assert optimizer_record(optimizer(nesterov={"learning_rate": 0.1})) == NesterovRecord(0.1, 0.9, ConstantSchedule())
    assert optimizer_record(optimizer(adagrad={"learning_rate": 0.1})) == AdagradRecord(0.1, 1e-10, ConstantSchedule())
    assert optimizer_record(optimizer(rmsprop={"learning_rate": 0.1})) == RmsPropRecord(0.1, 0.99, 1e-8, ConstantSchedule())
    assert optimizer_record(optimizer(adam={"learning_rate": 0.1})) == AdamRecord(0.1, 0.9, 0.999, 1e-8, ConstantSchedule())
    adamw = optimizer_record(optimizer(adamw={"learning_rate": 0.1}))
    assert adamw == AdamWRecord(0.1, 0.9, 0.999, 1e-8, 0.01, ConstantSchedule())
    lamb = optimizer_record(optimizer(lamb={"learning_rate": 0.1}))
    assert lamb == LambRecord(0.1, 0.9, 0.999, 1e-6, 0.01, ConstantSchedule())
    given = optimizer(momentum={"learning_rate": 0.1, "momentum": 0.0}, schedule={"constant": {}})
    assert optimizer_record(given) == MomentumRecord(0.1, 0.0, ConstantSchedule())


def test_schedules_and_their_defaults() -> None:
    def schedule(**fields: Any) -> object:
        return optimizer_record(optimizer(sgd={"learning_rate": 1}, schedule=fields)).schedule

    assert schedule(warmup_steps=3) == ConstantSchedule(3)
    assert schedule(step={"every_epochs": 2}) == StepSchedule(2, 0.1)
    assert schedule(exponential={"factor": 0.5}) == ExponentialSchedule(0.5)
    assert schedule(cosine={}, warmup_steps=5) == CosineSchedule(0.0, 5)
    assert schedule(one_cycle={}) == OneCycleSchedule(0.3, 25, 10000)
    assert schedule(polynomial={}) == PolynomialSchedule(1)
    assert schedule(plateau={}, warmup_steps=2) == PlateauSchedule(0.1, 5, 2)
    assert schedule(plateau={"factor": 0.5, "patience": 1}) == PlateauSchedule(0.5, 1)


def test_bounds_on_the_gradient() -> None:
    def bounds(**fields: Any) -> ClippingRecord:
        given = optimizer(lamb={"learning_rate": 0.1}, clipping=fields)
        optimizer_record(given)
        return clipping_record(given)

    assert bounds(value=0.5) == ClippingRecord(value=0.5)
    assert bounds(global_norm=2) == ClippingRecord(global_norm=2.0)
    assert clipping_record(optimizer(sgd={"learning_rate": 1})) == ClippingRecord()
    for name in ("value", "global_norm"):
        for wrong in (0.0, -1.0, "Infinity", "NaN"):
            with pytest.raises(UserError, match=rf"optimizer\.clipping\.{name}: got .*; it must be above 0 and finite"):
                bounds(**{name: wrong})
    with pytest.raises(UserError, match=r"optimizer\.clipping: exactly one bound must be given: global_norm, value"):
        bounds()


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan"), float("inf")])
def test_a_wrong_learning_rate_is_refused(rate: float) -> None:
    given = Optimizer()
    given.momentum.learning_rate = rate
    with pytest.raises(UserError, match=r"optimizer\.momentum\.learning_rate: got .*; it must be above 0 and finite"):
        optimizer_record(given)


def test_a_wrong_momentum_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.momentum\.momentum: got 1\.0; it must be at least 0 and below 1"):
        optimizer_record(optimizer(momentum={"learning_rate": 0.1, "momentum": 1.0}))


def test_specs_and_shapes_load_without_numpy() -> None:
    code = "import sys, worker.specs, worker.nn.shapes; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
