"""The engine against stored vectors of PyTorch, both in float64: layers, losses, optimizers and whole networks.

`benchmarks/make_vectors.py` has made them. Descriptions are the contract's messages as JSON, tensors are in public shapes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from numpy.typing import NDArray

from lockstep.v1.model_pb2 import Layer, ModelSpec
from lockstep.v1.optimization_pb2 import Loss, Optimizer
from tests.worker.nn.layer_bench import LayerBench
from tests.worker.nn.test_update import take_step
from worker.nn.layers import LAYERS, Layout
from worker.nn.losses import LOSSES, build_loss
from worker.nn.model import Model
from worker.nn.optimizers import OPTIMIZERS
from worker.nn.parameters import Array, aligned_zeros
from worker.nn.schedules import learning_rate
from worker.nn.shapes import flattened, layer_shapes
from worker.nn.update import Update
from worker.specs import (
    Architecture,
    ConstantSchedule,
    DropoutRecord,
    PenaltyRecord,
    SgdRecord,
    architecture,
    clipping_record,
    loss_record,
    optimizer_record,
    penalty_record,
)

Case = dict[str, Any]

FOLDER = Path(__file__).parent / "vectors"
FILES: dict[str, list[Case]] = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
LAYER_CASES = [case for cases in FILES.values() for case in cases if "layer" in case]
LOSS_CASES, NETWORK_CASES, OPTIMIZER_CASES = FILES["losses"], FILES["networks"], FILES["optimizers"]
SCHEDULE_CASES = FILES["schedules"]

# Only the order of sums differs.
TOLERANCE = 1e-11
# Of networks in float32, as they train.
SINGLE_TOLERANCE = 3e-5
# Random; and the schedules that PyTorch has with another count of steps or evaluations.
WITHOUT_VECTORS = frozenset({"dropout", "initializer", "one_cycle", "plateau"})


def name_of(case: Case) -> str:
    return str(case["name"])


def close(got: Any, want: Any, what: str, tolerance: float = TOLERANCE) -> None:
    """The error is relative to each number, or to a hundredth of the tensor's largest where that is more; at least to 2e-3, for
    what is zero by algebra, such as the gradient of a bias ahead of batch normalization."""
    want = np.array(want, np.float64)
    floor = max(float(np.abs(want).max()) / 100, 2e-3)
    np.testing.assert_allclose(np.reshape(got, want.shape), want, rtol=tolerance, atol=tolerance * floor, err_msg=what)


def network_of(layers: Sequence[Case], row: Sequence[int]) -> Architecture:
    return architecture(ParseDict({"layers": layers}, ModelSpec()), tuple(row))


def set_tensors(tensors: dict[str, Array], case: Case) -> None:
    given = case["tensors"] | case.get("state", {})
    assert given.keys() == tensors.keys()
    for name, value in given.items():
        tensors[name][...] = value


# Layers


def bench_of(case: Case, shards: int, training: bool = True) -> tuple[LayerBench, dict[str, Array]]:
    """The case's layer with its tensors, and its gradients in their public shapes, with the shards in front."""
    row = tuple(case["row"])
    (record,) = network_of([case["layer"]], row).layers
    bench = LayerBench(record, row, shards=shards, rows=len(case["x"]) // shards, training=training)
    prefix, tensors = bench.shapes.name, bench.shapes.tensors
    set_tensors({f"{prefix}.{name}": bench.parameters[name].transpose(tensors[name].axes) for name in tensors}, case)
    gradients = {
        f"{prefix}.{name}": bench.gradients[name].transpose(0, *(axis + 1 for axis in tensor.axes))
        for name, tensor in tensors.items()
    }
    return bench, gradients


def stacked(case: Case, name: str, shards: int) -> Array:
    value = np.array(case[name], np.float64)
    return value.reshape(shards, -1, *value.shape[1:])


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("case", LAYER_CASES, ids=name_of)
def test_a_layer(case: Case, shards: int) -> None:
    if "batch_norm" in case["layer"]:
        shards = 1  # statistics are a shard's own
    bench, gradients = bench_of(case, shards)
    close(bench.forward(stacked(case, "x", shards)), case["y"], "y")
    close(bench.backward(stacked(case, "dy", shards)), case["dx"], "dx")
    for name, want in case["gradients"].items():
        close(gradients[name].sum(axis=0), want, name)
    for name, want in case.get("updated", {}).items():
        keep = bench.shapes.tensors[name.rpartition(".")[2]].keep
        close(keep * np.array(case["state"][name]) + (1 - keep) * gradients[name][0] / bench.rows, want, name)


@pytest.mark.parametrize("case", LAYER_CASES, ids=name_of)
def test_a_layer_in_inference(case: Case) -> None:
    bench, _ = bench_of(case, 1, training=False)
    close(bench.forward(stacked(case, "x", 1)), case.get("inference", case["y"]), "y")


# Losses


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("case", LOSS_CASES, ids=name_of)
def test_a_loss(case: Case, shards: int) -> None:
    output, z = tuple(case["output"]), stacked(case, "z", shards)
    loss = build_loss(loss_record(ParseDict(case["loss"], Loss())), shards, z.shape[1], output, np.dtype(np.float64))
    rows_last = loss.layout is Layout.ROWS_LAST
    inside = np.ascontiguousarray(np.moveaxis(z, 1, -1) if rows_last else z)
    loss.forward(inside, np.array(case["y"], loss.target_dtype).reshape(shards, z.shape[1], *loss.target_shape(output)))
    close(loss.loss_sums.sum(), case["loss_sum"], "loss sum")
    close(loss.denominators.sum(), case["denominator"], "denominator")
    dz = loss.backward()
    close(np.moveaxis(dz, -1, 1) if rows_last else dz, case["dz"], "dz")


# Networks


def stacks_of(model: Model, case: Case, cuts: Sequence[int]) -> list[tuple[Array, NDArray[Any]]]:
    """The rows as stacks, cut at shards: all are equally large."""
    count, rows = len(case["shards"]), case["shards"][0]
    x = np.array(case["x"], model.dtype).reshape(count, rows, *model.input_shape)
    y = np.array(case["y"], model.target_dtype).reshape(count, rows, *model.target_shape)
    return [(x[first:end].copy(), y[first:end].copy()) for first, end in zip((0, *cuts), (*cuts, count), strict=True)]


def compare_network(case: Case, cuts: Sequence[int], dtype: Any, tolerance: float) -> None:
    loss = loss_record(ParseDict(case["loss"], Loss()))
    model = Model(network_of(case["layers"], case["row"]), loss, dtype=dtype)
    tensors = model.named_parameters()
    set_tensors(tensors, case)
    result = model.loss_and_gradient(stacks_of(model, case, cuts))
    close(result.loss_sum, case["loss_sum"], "loss sum", tolerance)
    close(result.denominator, case["denominator"], "denominator", tolerance)
    gradients = model.named_gradients()
    for name, want in case["gradients"].items():
        close(gradients[name], want, name, tolerance)
    close(model.predict(np.array(case["x"], dtype)), case["inference"], "outputs in inference", tolerance)
    first = model.layout.learned
    if first < model.layout.size:
        update = Update(SgdRecord(1.0, ConstantSchedule()), PenaltyRecord(0.0, 0.0), model.layout, dtype=dtype)
        update.apply(first, model.parameters[first:], model.gradients[0, first:] / len(case["x"]), [], 1, 1.0)
        for name, want in case["updated"].items():
            close(tensors[name], want, name, tolerance)


@pytest.mark.parametrize("cuts", [(), (1,)], ids=["one stack", "two stacks"])
@pytest.mark.parametrize("case", NETWORK_CASES, ids=name_of)
def test_a_network(case: Case, cuts: tuple[int, ...]) -> None:
    compare_network(case, cuts, np.float64, TOLERANCE)


@pytest.mark.parametrize("case", NETWORK_CASES, ids=name_of)
def test_a_network_in_float32(case: Case) -> None:
    compare_network(case, (), np.float32, SINGLE_TOLERANCE)


# Optimizers


@pytest.mark.parametrize("case", OPTIMIZER_CASES, ids=name_of)
def test_an_optimizer(case: Case) -> None:
    loss_message, message = ParseDict(case["loss"], Loss()), ParseDict(case["optimizer"], Optimizer())
    model = Model(network_of(case["layers"], (len(case["x"][0]),)), loss_record(loss_message), dtype=np.float64)
    tensors = model.named_parameters()
    set_tensors(tensors, case)
    record, penalty, clipping = optimizer_record(message), penalty_record(loss_message), clipping_record(message)
    update = Update(record, penalty, model.layout, clipping, np.float64)
    state = [aligned_zeros((model.layout.size,), np.float64) for _ in update.state_names]
    stack = (np.array(case["x"])[None], np.array(case["y"], model.target_dtype)[None])
    for step, (loss, after) in enumerate(zip(case["losses"], case["trajectory"], strict=True), 1):
        result = model.loss_and_gradient([stack])
        close(result.loss_sum / result.denominator, loss, f"loss of step {step}")
        mean = model.gradients[0] / result.denominator
        take_step(update, model.parameters, mean, state, step, record.learning_rate)
        for name, want in after.items():
            close(tensors[name], want, f"{name} after step {step}")


# Schedules


@pytest.mark.parametrize("case", SCHEDULE_CASES, ids=name_of)
def test_a_schedule(case: Case) -> None:
    record = optimizer_record(ParseDict(case["optimizer"], Optimizer()))
    for step, want in enumerate(case["rates"], 1):
        got = learning_rate(record, step, case["steps_per_epoch"], case["total_steps"])
        close(got, want, f"learning rate of step {step}")


# Completeness


def records_of(case: Case) -> Iterator[type[Any]]:
    layers = layer_shapes(network_of([case["layer"]] if "layer" in case else case["layers"], case["row"]))
    yield from (type(layer.record) for layer in flattened(layers))


def test_every_layer_loss_and_optimizer_has_a_case() -> None:
    # Dropout is drawn from streams of our own; its tests are elsewhere.
    assert {record for case in LAYER_CASES for record in records_of(case)} == LAYERS.keys() - {DropoutRecord}
    assert {type(loss_record(ParseDict(case["loss"], Loss()))) for case in LOSS_CASES} == LOSSES.keys()
    optimizers = [optimizer_record(ParseDict(case["optimizer"], Optimizer())) for case in OPTIMIZER_CASES]
    assert {type(optimizer) for optimizer in optimizers} == OPTIMIZERS.keys()


def fields_of(message: Descriptor, found: set[str]) -> set[str]:
    """The names of all fields in a message and those inside it, as "Dense.units"."""
    for field in message.fields:
        name = f"{message.name}.{field.name}"
        if name not in found and field.name not in WITHOUT_VECTORS:
            found.add(name)
            if field.message_type is not None:
                fields_of(field.message_type, found)
    return found


def given(message: Message, found: set[str]) -> set[str]:
    """The names of the fields that are set in a message and those inside it."""
    for field, value in message.ListFields():
        found.add(f"{message.DESCRIPTOR.name}.{field.name}")
        if field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                given(inner, found)
    return found


def test_every_option_stands_in_a_case() -> None:
    found: set[str] = set()
    for case in (*LAYER_CASES, *NETWORK_CASES):
        for layer in [case["layer"]] if "layer" in case else case["layers"]:
            given(ParseDict(layer, Layer()), found)
    for case in (*LOSS_CASES, *OPTIMIZER_CASES, *SCHEDULE_CASES):
        given(ParseDict(case.get("loss", {}), Loss()), found)
        given(ParseDict(case.get("optimizer", {}), Optimizer()), found)
    contract: set[str] = set()
    for message in (Layer.DESCRIPTOR, Loss.DESCRIPTOR, Optimizer.DESCRIPTOR):
        fields_of(message, contract)
    assert contract - found == set()


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 600_000
