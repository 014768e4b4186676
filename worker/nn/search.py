"""The search for the first number that is not finite: the pass once more, looked at layer by layer and shard by shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from worker.nn.layers import Layer, Layout
from worker.nn.parameters import Array
from worker.nn.passes import Network, StackPass, StepPass
from worker.nn.shapes import flattened
from worker.nn.streams import Streams
from worker.nn.tiles import TiledSum


@final
@dataclass(frozen=True, slots=True)
class NonFinitePlace:
    """`layer` is "layers[3].dense" or "loss"; `where` says what it was: "parameters", "input", "output", "loss", "gradient of
    the loss", "gradient of the parameters", "gradient of the input", "sum of the shards' gradients".

    `moment` rises with the pass, from 1, and is the same whatever the shards: of several places the smallest (moment, shard)
    came first. `shard` counts from the first of the stacks; None where it is not of one shard. `rows` are those of the shard,
    from 0, where it is of single rows; else they are empty.
    """

    layer: str
    where: str
    moment: int
    shard: int | None = None
    rows: tuple[int, ...] = ()


def search(
    network: Network, step: StepPass, stacks: Sequence[tuple[Array, Any]], streams: Streams | None
) -> NonFinitePlace | None:
    """Runs the pass and returns the first place that is not finite: forward by layer, then the loss, then backward.

    Parameters come before all of it: where they are not finite, whatever follows is their doing.
    """
    for shape in flattened(network.shapes):
        for tensor in network.tensors_of(shape, network.parameters).values():
            if not np.isfinite(tensor).all():
                return NonFinitePlace(shape.place, "parameters", 1)
    for stack_pass, (x, _) in zip(step.passes, stacks, strict=True):
        if hit := _first_rows(stack_pass, x, Layout.ROWS_FIRST):
            return NonFinitePlace(network.shapes[0].place, "input", 2, *hit)
    return _search_forward(network, step, stacks, streams) or _search_backward(network, step)


def _search_forward(
    network: Network, step: StepPass, stacks: Sequence[tuple[Array, Any]], streams: Streams | None
) -> NonFinitePlace | None:
    """The first node, over all stacks, whose output is not finite; then the losses, then their gradients."""
    nodes, values = network.graph.nodes, network.graph.values
    hits: list[tuple[int, int, tuple[int, ...]]] = []
    for stack_pass, (x, y) in zip(step.passes, stacks, strict=True):

        def look(moment: int, output: Array, own: StackPass = stack_pass) -> None:
            if hit := _first_rows(own, output, values[nodes[moment].output].layout):
                hits.append((moment, *hit))

        stack_pass.loss.forward(stack_pass.forward(x, streams, look), y)
    if hits:
        moment, shard, rows = min(hits)
        return NonFinitePlace(nodes[moment].shapes.place, "output", 3 + moment, shard, rows)
    for stack_pass in step.passes:
        if hit := _first_rows(stack_pass, stack_pass.loss.row_losses, Layout.ROWS_FIRST):
            return NonFinitePlace("loss", "loss", 3 + len(nodes), *hit)
    gradients = [stack_pass.loss.backward() for stack_pass in step.passes]
    for stack_pass, dz in zip(step.passes, gradients, strict=True):
        stack_pass.take_gradient(dz)
        if hit := _first_rows(stack_pass, dz, network.result_layout):
            return NonFinitePlace("loss", "gradient of the loss", 4 + len(nodes), *hit)
    return None


def _search_backward(network: Network, step: StepPass) -> NonFinitePlace | None:
    """The first node from the end whose gradients, over all stacks, are not finite, or whose sums over shards are not."""
    nodes, values = network.graph.nodes, network.graph.values
    for number, (moment, calls, programs) in enumerate(step.backward):
        place, at = nodes[moment].shapes.place, 5 + len(nodes) + 3 * number
        for backward, dy, sums in calls:
            backward(dy)
            for before, dx, total in sums:
                np.add(before, dx, out=total)
        layers = [(stack_pass, stack_pass.layers[moment]) for stack_pass in step.passes]
        shards = [own.first + shard for own, layer in layers if isinstance(layer, Layer) for shard in _gradient_shards(layer)]
        failed = [program for program in programs if not program.run()]
        shards += [shard for program in failed if isinstance(program, TiledSum) for shard in program.shards_not_finite()]
        if shards:
            return NonFinitePlace(place, "gradient of the parameters", at, min(shards))
        for own, layer in layers:
            if not isinstance(layer, Layer) or not layer.setting.needs_input_gradient:
                continue
            if hit := _first_rows(own, own.outgoing[moment], values[nodes[moment].inputs[0]].layout):
                return NonFinitePlace(place, "gradient of the input", at + 1, *hit)
        if failed:
            return NonFinitePlace(place, "sum of the shards' gradients", at + 2)
    return None


def _gradient_shards(layer: Layer) -> list[int]:
    """The first shard of the layer's stack at which each of its tensors has a gradient that is not finite."""
    shards = []
    for gradient in (layer.setting.gradients or {}).values():
        whole = np.isfinite(gradient).reshape(len(gradient), -1).all(axis=1)
        if not whole.all():
            shards.append(int(np.argmin(whole)))
    return shards


def _first_rows(stack_pass: StackPass, x: Array, layout: Layout) -> tuple[int, tuple[int, ...]] | None:
    """(the first shard at which something of x is not finite, its rows that are not); x is in `layout`."""
    shards, rows = stack_pass.shards, stack_pass.rows
    last = layout is Layout.ROWS_LAST
    finite = np.isfinite(x).reshape((shards, -1, rows) if last else (shards, rows, -1))
    bad = np.logical_not(finite.all(axis=1 if last else 2))
    if not bad.any():
        return None
    shard = int(np.argmax(bad)) // rows
    return stack_pass.first + shard, tuple(np.flatnonzero(bad[shard]).tolist())
