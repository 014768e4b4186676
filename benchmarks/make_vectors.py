"""Computes the stored vectors of the engine's tests, tests/worker/nn/vectors/*.json, with PyTorch in float64.

Run it from the root of the repository, with a Python that has PyTorch, which the project itself does not need:

    python3 -m venv .venv-torch
    .venv-torch/bin/pip install torch==2.13.0 numpy
    .venv-torch/bin/python -m benchmarks.make_vectors

A file holds one case a line, so that a change shows in a diff; on one machine the same cases give the same bytes. It takes
nothing from the engine: the descriptions are those of the contract (proto/lockstep/v1), the tensors are in their public shapes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.oracle import cases
from benchmarks.oracle.layers import network
from benchmarks.oracle.losses import loss_and_denominator, penalty
from benchmarks.oracle.networks import NETWORKS
from benchmarks.oracle.optimizers import build_optimizer, clip
from benchmarks.oracle.schedules import learning_rates
from benchmarks.oracle.tensors import Draw, Tensors

FOLDER = Path(__file__).parent.parent / "tests/worker/nn/vectors"
# Rows of a layer's case; images have fewer, since they are large.
ROWS, ROWS_OF_IMAGES = 4, 2
ROWS_OF_LOSSES = 8
STEPS = 10

Case = dict[str, Any]
Shape = tuple[int, ...]


def numbers(tensor: torch.Tensor) -> Any:
    """A tensor as nested lists of numbers, which read back are the same float64."""
    assert torch.isfinite(tensor).all()
    return tensor.detach().tolist()


def named(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: numbers(tensor) for name, tensor in tensors.items()}


def gradients(tensors: Tensors) -> dict[str, Any]:
    return {name: numbers(w.grad) for name, w in tensors.learned.items()}


def draw_inputs(draw: Draw, layer: Case, shape: Shape) -> torch.Tensor:
    """Inputs for a network that begins with this layer."""
    if "embedding" in layer:
        return draw.whole(shape, layer["embedding"]["vocabulary"]).to(torch.float64)
    return draw.spread(shape, -9, 9) if cases.WIDE & layer.keys() else draw.spread(shape)


def draw_targets(draw: Draw, loss: Case, output: torch.Size) -> torch.Tensor:
    """Targets for outputs (N, *output)."""
    if "softmax_cross_entropy" in loss:
        return draw.whole(output[:-1], output[-1])
    if "binary_cross_entropy" in loss:
        return draw.whole(output[:1] if output[1:] == (1,) else output, 2)
    return draw.spread(tuple(output))


def layer_case(name: str, layer: Case, row: Shape) -> Case:
    """One layer: its outputs, and the gradients of sum(y * dy) with respect to x and the tensors."""
    draw = Draw(name)
    tensors = Tensors(draw)
    shape = (ROWS_OF_IMAGES if len(row) == 3 else ROWS, *row)
    x = draw.whole(shape, 3).to(torch.float64) if name in cases.TIED else draw_inputs(draw, layer, shape)
    x.requires_grad_()
    y = network([layer], tensors, x, True)
    dy = draw.spread(tuple(y.shape))
    torch.sum(y * dy).backward()
    case = {"name": name, "layer": layer, "row": row, "tensors": named(tensors.learned), "x": numbers(x), "y": numbers(y)}
    case |= {"dy": numbers(dy), "dx": numbers(x.grad), "gradients": gradients(tensors)}
    if tensors.state:
        case |= {"state": named(tensors.state), "updated": named({key: value for key, (value,) in tensors.updates.items()})}
        case["inference"] = numbers(network([layer], tensors, x, False))
    return case


def loss_case(name: str, loss: Case, output: Shape, labels: int) -> Case:
    """One loss: its sum, what it is divided by, and the gradient of the sum with respect to the outputs."""
    draw = Draw(name)
    z = draw.spread((ROWS_OF_LOSSES, *output), -5, 5).requires_grad_()
    if labels:
        y = draw_targets(draw, loss, z.shape)
    else:
        y = (
            draw.spread((ROWS_OF_LOSSES, *output), 0.05, 0.95)
            if "binary_cross_entropy" in loss
            else draw.spread(tuple(z.shape))
        )
    total, denominator = loss_and_denominator(loss, z, y)
    total.backward()
    case = {"name": name, "loss": loss, "output": output, "z": numbers(z), "y": numbers(y)}
    return case | {"loss_sum": numbers(total), "denominator": numbers(denominator), "dz": numbers(z.grad)}


def network_case(name: str, layers: list[Case], row: Shape, loss: Case, shards: Shape) -> Case:
    """One pass of a network over some shards: the loss sum, its gradient, updated statistics, and outputs in inference."""
    draw = Draw(name)
    tensors = Tensors(draw)
    x = draw_inputs(draw, layers[0], (sum(shards), *row))
    outputs = [network(layers, tensors, part, True) for part in x.split(shards)]
    y = draw_targets(draw, loss, torch.cat(outputs).shape)
    sums = [loss_and_denominator(loss, z, part) for z, part in zip(outputs, y.split(shards), strict=True)]
    total = torch.stack([value for value, _ in sums]).sum()
    total.backward()
    case = {"name": name, "layers": layers, "row": row, "loss": loss, "shards": shards}
    case |= {"tensors": named(tensors.learned), "x": numbers(x), "y": numbers(y), "loss_sum": numbers(total)}
    case |= {"denominator": sum(numbers(count) for _, count in sums), "gradients": gradients(tensors)}
    if tensors.state:
        weights = torch.tensor([float(rows) for rows in shards]) / sum(shards)
        updated = {key: torch.stack(values, -1) @ weights for key, values in tensors.updates.items()}
        case |= {"state": named(tensors.state), "updated": named(updated)}
    return case | {"inference": numbers(network(layers, tensors, x, False))}


def optimizer_case(name: str, optimizer: Case, loss: Case) -> Case:
    """Some steps of a small net on one batch: the mean loss before each step, and the tensors after it."""
    draw = Draw("one net for all")
    tensors = Tensors(draw)
    layers = [cases.dense(3), {"tanh": {}}, cases.dense(2)]
    x, y = draw.spread((ROWS_OF_LOSSES, 4)), draw.whole((ROWS_OF_LOSSES,), 2)
    network(layers, tensors, x, True)
    method = build_optimizer(optimizer, tensors.learned)
    case = {"name": name, "optimizer": optimizer, "layers": layers, "loss": loss, "x": numbers(x), "y": numbers(y)}
    case |= {"tensors": named(tensors.learned), "losses": [], "trajectory": []}
    for _ in range(STEPS):
        method.zero_grad()
        total, denominator = loss_and_denominator(loss, network(layers, tensors, x, True), y)
        mean = total / denominator
        (mean + penalty(loss, tensors.learned)).backward()
        clip(optimizer.get("clipping", {}), tensors.learned)
        method.step()
        case["losses"].append(numbers(mean))
        case["trajectory"].append(named(tensors.learned))
    return case


def schedule_case(name: str, schedule: Case) -> Case:
    """The learning rate of each step of a job."""
    rate, steps_per_epoch, total_steps = 0.5, 3, 12
    case: Case = {"name": name, "optimizer": {"sgd": {"learning_rate": rate}, "schedule": schedule}}
    case |= {"steps_per_epoch": steps_per_epoch, "total_steps": total_steps}
    return case | {"rates": learning_rates(rate, schedule, steps_per_epoch, total_steps)}


def families() -> dict[str, list[Case]]:
    """All cases, by the name of their file."""
    found = {family: [layer_case(name, *case) for name, case in members.items()] for family, members in cases.LAYERS.items()}
    found["losses"] = [loss_case(name, *case) for name, case in cases.LOSSES.items()]
    found["optimizers"] = [optimizer_case(name, *case) for name, case in cases.OPTIMIZERS.items()]
    found["schedules"] = [schedule_case(name, case) for name, case in cases.SCHEDULES.items()]
    found["networks"] = [network_case(name, *case) for name, case in NETWORKS.items()]
    return found


def main() -> None:
    for family, members in families().items():
        lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in members)
        (FOLDER / f"{family}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
