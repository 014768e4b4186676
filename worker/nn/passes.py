"""Buffers of the passes, made once per stack shape: the layers of one stack, and the steps over one or two stacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

from worker.nn.combination import Node, Program, Span, plan_span, span_stack, spans, tree_sum
from worker.nn.layers import Layer, Setting, build_layer
from worker.nn.losses import Loss, build_loss
from worker.nn.parameters import Array, aligned_zeros, internal_views
from worker.nn.shapes import BLOCK_FLOATS, LayerShapes, ParameterLayout
from worker.nn.streams import Streams
from worker.specs import Architecture, LossRecord


@final
class Network:
    """What a model is made of, apart from its buffers."""

    def __init__(
        self, architecture: Architecture, loss: LossRecord, shapes: list[LayerShapes], layout: ParameterLayout, flat: Array
    ) -> None:
        self.architecture, self.loss, self.shapes, self.layout = architecture, loss, shapes, layout
        self.dtype = flat.dtype
        self.input_shape = shapes[0].input_shape
        self.outputs = math.prod(shapes[-1].output_shape)
        self.parameters = internal_views(layout, flat)
        self.spans = spans(shapes, layout)
        # The first layer that learns; those before it need no backward pass.
        self.first_learning = next((i for i, layer in enumerate(shapes) if layer.tensors), len(shapes))


@final
class StackPass:
    """The layers and the loss at one stack shape (S shards, R rows); `gradients` is None for evaluation alone."""

    def __init__(self, network: Network, shards: int, rows: int, gradients: dict[str, Array] | None) -> None:
        self.shards, self.rows = shards, rows
        axes = len(network.input_shape) + 2
        self._axes = (0, *range(2, axes), 1)
        self.layers: list[Layer] = []
        free: Array | None = None
        widest = max(math.prod(shape.output_shape) for shape in network.shapes)
        scratch = aligned_zeros((shards * widest * rows,), network.dtype)
        for index, (record, shape) in enumerate(zip(network.architecture.layers, network.shapes, strict=True)):
            names = {name: f"{shape.name}.{name}" for name in shape.tensors}
            setting = Setting(
                place=shape.place,
                shards=shards,
                rows=rows,
                dtype=network.dtype,
                input_shape=shape.input_shape,
                output_shape=shape.output_shape,
                parameters={name: network.parameters[full] for name, full in names.items()},
                gradients=None if gradients is None else {name: gradients[full] for name, full in names.items()},
                needs_input_gradient=index > network.first_learning,
                reuse=free,
                scratch=scratch,
            )
            layer = build_layer(record, setting)
            self.layers.append(layer)
            free = layer.overwritable
        self.loss: Loss = build_loss(network.loss, shards, network.outputs, rows, network.dtype)
        self.z_shape = (shards, network.outputs, rows)

    def rows_last(self, x: Array) -> Array:
        """x (S, R, *input) as the engine sees it, (S, *input, R): a view."""
        return x.transpose(self._axes)

    def forward(self, x: Array, streams: Streams | None) -> Array:
        """x (S, R, *input) in the public layout to the outputs z (S, K, R)."""
        h = x.transpose(self._axes)
        for layer in self.layers:
            h = layer.forward(h, streams)
        return h.reshape(self.z_shape)


@final
class StepPass:
    """Forward and backward over a worker's stacks, its gradients combined into subtrees layer by layer."""

    def __init__(self, network: Network, stacks: Sequence[tuple[int, int]], nodes: Sequence[Node], gradients: Array) -> None:
        self.nodes = tuple(nodes)
        rows_of_leaves = [float(rows) for shards, rows in stacks for _ in range(shards)]
        self.denominators = tuple(tree_sum(node, rows_of_leaves) for node in nodes)
        leaves = len(rows_of_leaves)
        # Where every subtree is one shard, its gradient is written in place.
        direct = len(nodes) == leaves
        scratch = None if direct else span_stack(network.spans, leaves, network.dtype)
        zeros = aligned_zeros((min(BLOCK_FLOATS, network.layout.size),), network.dtype)
        # By layer: what combines the span that its backward pass completes.
        self.programs: list[Program | None] = [None] * len(network.shapes)
        views: dict[str, Array] = {}
        for span in network.spans:
            stack = None
            if scratch is not None:
                width = span.end - span.first
                stack = scratch[: leaves * width].reshape(leaves, width)
            self.programs[span.layer] = plan_span(span, nodes, stack, gradients, zeros)
            views.update(_gradient_views(span, gradients[:leaves] if stack is None else stack, stack is not None))
        self.passes: list[StackPass] = []
        first = 0
        for shards, rows in stacks:
            own = {name: view[first : first + shards] for name, view in views.items()}
            self.passes.append(StackPass(network, shards, rows, own))
            first += shards
        # From the last layer down to the first that learns.
        self._backward = [
            ([stack_pass.layers[index] for stack_pass in self.passes], self.programs[index])
            for index in reversed(range(network.first_learning, len(network.shapes)))
        ]

    def run(self, stacks: Sequence[tuple[Array, Any]], streams: Streams | None) -> tuple[list[float], bool]:
        """Loss sums by shard, and whether all gradients are finite; the gradients lie in the model's rows."""
        loss_sums: list[float] = []
        gradients = []
        for stack_pass, (x, y) in zip(self.passes, stacks, strict=True):
            loss = stack_pass.loss
            loss.forward(stack_pass.forward(x, streams), y)
            loss_sums.extend(loss.loss_sums.tolist())
            gradients.append(loss.backward())
        finite = True
        for layers, program in self._backward:
            for at, layer in enumerate(layers):
                gradients[at] = layer.backward(gradients[at].reshape(layer.output_shape))
            if program is not None:
                finite &= program.run()
        return loss_sums, finite


def _gradient_views(span: Span, rows: Array, relative: bool) -> dict[str, Array]:
    """The span's tensors (leaves, *internal shape) in the leaves' gradients."""
    start = span.first if relative else 0
    return {
        entry.name: rows[:, entry.offset - start : entry.offset - start + entry.size].reshape(len(rows), *entry.internal_shape)
        for entry in span.entries
    }
