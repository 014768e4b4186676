"""The search for the first number that is not finite: the pass once more, looked at layer by layer and shard by shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from worker.nn.parameters import Array
from worker.nn.passes import Network, StepPass
from worker.nn.streams import Streams


@final
@dataclass(frozen=True, slots=True)
class NonFinitePlace:
    """`layer` is "layers[3].dense" or "loss"; `shard` counts from the first of the stacks; `where` says what it was:
    "input", "parameters", "output", "loss", "gradient of the outputs", "gradient of the parameters", "sum of shards"."""

    layer: str
    shard: int
    where: str


def search(
    network: Network, step: StepPass, stacks: Sequence[tuple[Array, Any]], streams: Streams | None
) -> NonFinitePlace | None:
    """Runs the pass and returns the first place that is not finite: forward by layer, then the loss, then backward."""
    place = network.shapes[0].place
    firsts = [sum(p.shards for p in step.passes[:at]) for at in range(len(step.passes))]
    for shape in network.shapes:
        for name in shape.tensors:
            if not np.isfinite(network.parameters[f"{shape.name}.{name}"]).all():
                return NonFinitePlace(shape.place, 0, "parameters")
    outputs = []
    for first, (x, _) in zip(firsts, stacks, strict=True):
        if (shard := _first_shard(x)) is not None:
            return NonFinitePlace(place, first + shard, "input")
    flowing = [stack_pass.rows_last(x) for stack_pass, (x, _) in zip(step.passes, stacks, strict=True)]
    for index, shape in enumerate(network.shapes):
        for at, stack_pass in enumerate(step.passes):
            flowing[at] = stack_pass.layers[index].forward(flowing[at], streams)
            if (shard := _first_shard(flowing[at])) is not None:
                return NonFinitePlace(shape.place, firsts[at] + shard, "output")
    for at, (stack_pass, (_, y)) in enumerate(zip(step.passes, stacks, strict=True)):
        stack_pass.loss.forward(flowing[at].reshape(stack_pass.z_shape), y)
        if (shard := _first_shard(stack_pass.loss.loss_sums)) is not None:
            return NonFinitePlace("loss", firsts[at] + shard, "loss")
        outputs.append(stack_pass.loss.backward())
        if (shard := _first_shard(outputs[at])) is not None:
            return NonFinitePlace("loss", firsts[at] + shard, "gradient of the outputs")
    return _search_backward(network, step, firsts, outputs)


def _search_backward(network: Network, step: StepPass, firsts: Sequence[int], flowing: list[Array]) -> NonFinitePlace | None:
    for index in reversed(range(network.first_learning, len(network.shapes))):
        shape, program = network.shapes[index], step.programs[index]
        for at, stack_pass in enumerate(step.passes):
            layer = stack_pass.layers[index]
            flowing[at] = layer.backward(flowing[at].reshape(layer.output_shape))
            for gradient in (layer.setting.gradients or {}).values():
                if (shard := _first_shard(gradient)) is not None:
                    return NonFinitePlace(shape.place, firsts[at] + shard, "gradient of the parameters")
            if layer.setting.needs_input_gradient and (shard := _first_shard(flowing[at])) is not None:
                return NonFinitePlace(shape.place, firsts[at] + shard, "gradient of the outputs")
        if program is not None and not program.run():
            return NonFinitePlace(shape.place, 0, "sum of shards")
    return None


def _first_shard(x: Array) -> int | None:
    """The first index of the leading axis at which something is not finite."""
    whole = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    return None if whole.all() else int(np.argmin(whole))
