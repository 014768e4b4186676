"""The search for the first number that is not finite: the pass once more, looked at layer by layer and shard by shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from worker.nn.layers import Layer
from worker.nn.parameters import Array
from worker.nn.passes import Network, StepPass
from worker.nn.shapes import flattened
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
    for shape in flattened(network.shapes):
        for tensor in network.tensors_of(shape, network.parameters).values():
            if not np.isfinite(tensor).all():
                return NonFinitePlace(shape.place, 0, "parameters")
    for stack_pass, (x, _) in zip(step.passes, stacks, strict=True):
        if (shard := _first_shard(x)) is not None:
            return NonFinitePlace(network.shapes[0].place, stack_pass.first + shard, "input")
    return _search_forward(network, step, stacks, streams) or _search_backward(network, step)


def _search_forward(
    network: Network, step: StepPass, stacks: Sequence[tuple[Array, Any]], streams: Streams | None
) -> NonFinitePlace | None:
    """The first node, over all stacks, whose output is not finite; then the losses."""
    hits: list[tuple[int, int]] = []
    for stack_pass, (x, y) in zip(step.passes, stacks, strict=True):

        def look(moment: int, output: Array, first: int = stack_pass.first) -> None:
            if (shard := _first_shard(output)) is not None:
                hits.append((moment, first + shard))

        stack_pass.loss.forward(stack_pass.forward(x, streams, look), y)
    if hits:
        moment, at_shard = min(hits)
        return NonFinitePlace(network.graph.nodes[moment].shapes.place, at_shard, "output")
    for stack_pass in step.passes:
        if (shard := _first_shard(stack_pass.loss.loss_sums)) is not None:
            return NonFinitePlace("loss", stack_pass.first + shard, "loss")
        dz = stack_pass.loss.backward()
        stack_pass.take_gradient(dz)
        if (shard := _first_shard(dz)) is not None:
            return NonFinitePlace("loss", stack_pass.first + shard, "gradient of the outputs")
    return None


def _search_backward(network: Network, step: StepPass) -> NonFinitePlace | None:
    for moment, calls, programs in step.backward:
        shape = network.graph.nodes[moment].shapes
        for stack_pass, (backward, dy, sums) in zip(step.passes, calls, strict=True):
            backward(dy)
            for before, dx, total in sums:
                np.add(before, dx, out=total)
            layer = stack_pass.layers[moment]
            if not isinstance(layer, Layer):
                continue
            for gradient in (layer.setting.gradients or {}).values():
                if (shard := _first_shard(gradient)) is not None:
                    return NonFinitePlace(shape.place, stack_pass.first + shard, "gradient of the parameters")
            if layer.setting.needs_input_gradient and (shard := _first_shard(stack_pass.outgoing[moment])) is not None:
                return NonFinitePlace(shape.place, stack_pass.first + shard, "gradient of the outputs")
        for program in programs:
            if not program.run():
                return NonFinitePlace(shape.place, 0, "sum of shards")
    return None


def _first_shard(x: Array) -> int | None:
    """The first index of the leading axis at which something is not finite."""
    whole = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    return None if whole.all() else int(np.argmin(whole))
