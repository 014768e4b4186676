"""Buffers of the passes, made once per stack shape: the nodes of one stack, and all stacks of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, final

import numpy as np

from worker.nn.arena import Arena, Tenancy
from worker.nn.combination import Program, Span, Subtree, plan_span, span_stacks, spans
from worker.nn.graph import Graph, Node
from worker.nn.layers import Layer, Layout, Setting, build_layer, layer_class
from worker.nn.layers.joins import Add, Concatenate, Join
from worker.nn.layers.transpose import Transpose
from worker.nn.losses import Loss, build_loss
from worker.nn.parameters import Array, internal_views
from worker.nn.shapes import BLOCK_FLOATS, LayerShapes, ParameterLayout, flattened
from worker.nn.streams import Streams
from worker.nn.tiles import TiledSum, scratch_tiles, tile_borders
from worker.specs import LossRecord


@final
class Network:
    """What a model is made of, apart from its buffers."""

    def __init__(self, loss: LossRecord, shapes: list[LayerShapes], layout: ParameterLayout, flat: Array) -> None:
        self.loss, self.shapes, self.layout = loss, shapes, layout
        self.dtype = flat.dtype
        self.input_shape = shapes[0].input_shape
        self.output_shape = shapes[-1].output_shape
        # The loss reads the rows as columns, and sequences as they are.
        self.result_layout = Layout.ROWS_LAST if len(self.output_shape) == 1 else Layout.ROWS_FIRST
        self.graph = Graph.of(shapes, self.result_layout)
        self.parameters = internal_views(layout, flat)
        self.spans = spans(layout)
        by_number = {layer.number: layer for layer in flattened(shapes)}
        # Spans that are one large weight, which its layer gives tile by tile.
        self.tiled = [span for span in self.spans if _is_tiled(span, by_number)]
        self.finished_ranges = self._finished_ranges()

    def _finished_ranges(self) -> tuple[tuple[int, int], ...]:
        """The range of the flat vector that each program of a backward pass completes, in their order."""
        ranges: list[tuple[int, int]] = []
        for node in reversed(self.graph.nodes):
            if node.kind != "layer":
                continue
            own = [span for span in self.spans if span.layer == node.shapes.number]
            ranges.extend((span.first, span.end) for span in own if span not in self.tiled)
            for span in own:
                if span in self.tiled:
                    rows, columns = span.entries[0].internal_shape
                    ends = [span.first + columns * row for row in tile_borders(rows, columns)]
                    ranges.extend(pairwise([*ends[:-1], span.end]))
        return tuple(ranges)

    def tensors_of(self, layer: LayerShapes, views: dict[str, Array]) -> dict[str, Array]:
        """A layer's own tensors out of all that are there, by their short names."""
        names = ((name, f"{layer.name}.{name}") for name in layer.tensors)
        return {name: views[full] for name, full in names if full in views}


def _is_tiled(span: Span, layers: dict[int, LayerShapes]) -> bool:
    entry, layer = span.entries[0], layers[span.entries[0].layer]
    if len(span.entries) > 1 or entry.size <= BLOCK_FLOATS or not layer.tensors:
        return False
    kind = layer_class(layer.record, layer.input_shape)
    return kind.tiled is not None and entry.name == f"{layer.name}.{kind.tiled}"


@final
class StackPass:
    """The nodes and the loss at one stack shape (S shards, R rows); `gradients` is None for evaluation alone.

    `first` is how many of the worker's shards come before this stack.
    """

    def __init__(self, network: Network, shards: int, rows: int, gradients: dict[str, Array] | None, first: int = 0) -> None:
        self.network, self.shards, self.rows, self.first = network, shards, rows, first
        arena = Arena(network.dtype)
        self._build(arena, gradients)
        arena.place()
        self._build(arena, gradients)
        self._forward = [self._caller(node, layer) for node, layer in zip(network.graph.nodes, self.layers, strict=True)]
        self.loss: Loss = build_loss(
            network.loss, shards, rows, network.output_shape, network.dtype, training=gradients is not None
        )

    def _build(self, arena: Arena, gradients: dict[str, Array] | None) -> None:
        graph, count = self.network.graph, len(self.network.graph.nodes)
        shape = Layout.ROWS_FIRST.shape(self.shards, self.rows, self.network.input_shape)
        self.values: list[Array] = [arena.outside(shape)]
        # Values that no layer may overwrite: the input, and what somebody's backward pass or another node reads.
        self._shielded = {0}
        self.layers: list[Layer | Join] = []
        memories = []
        for moment, node in enumerate(graph.nodes):
            memory = Tenancy(arena, moment, 2 * count - moment if gradients is not None else None)
            memories.append(memory)
            layer = self._layer_of(node, memory, gradients)
            self.layers.append(layer)
            self.values.append(layer.y)
            arena.use(layer.y, moment)
            for value in node.inputs:
                arena.use(self.values[value], moment)
            self._keep(arena, node, layer, 2 * count - moment if gradients is not None else moment)
        # The loss writes its gradient where the outputs were.
        self.z = self.values[graph.result]
        if graph.result in self._shielded:
            self.z = arena.array(self.z.shape, None, count, count)
        arena.use(self.z, count)
        if gradients is not None:
            self._build_backward(arena, memories)

    def _layer_of(self, node: Node, memory: Tenancy, gradients: dict[str, Array] | None) -> Layer | Join:
        network, x = self.network, self.values[node.inputs[0]]
        if node.kind in ("add", "concatenate"):
            join = Add if node.kind == "add" else Concatenate
            return join([self.values[value] for value in node.inputs], node.layout, memory)
        own = {} if node.kind == "turn" else network.tensors_of(node.shapes, network.parameters)
        setting = Setting(
            shapes=node.shapes,
            shards=self.shards,
            rows=self.rows,
            dtype=network.dtype,
            layout=node.layout,
            x=x,
            parameters=own,
            gradients=None if gradients is None else network.tensors_of(node.shapes, gradients) if own else {},
            needs_input_gradient=node.learns_before,
            may_overwrite_input=network.graph.values[node.inputs[0]].readers == 1 and node.inputs[0] not in self._shielded,
            may_overwrite_gradient=node.output not in network.graph.shared_gradients,
            memory=memory,
            activation=node.activation,
        )
        return Transpose(node.view, setting) if node.kind == "turn" else build_layer(node.shapes.record, setting)

    def _caller(self, node: Node, layer: Layer | Join) -> tuple[Callable[[Array, Streams | None], Array], int, int]:
        """How a node's forward pass is called: with (x, streams); which value x is, and which one it gives."""
        values = self.values
        if isinstance(layer, Layer) and not layer.looks:
            return layer.forward, node.inputs[0], node.output
        if isinstance(layer, Layer):

            def looking(x: Array, streams: Streams | None, layer: Layer = layer) -> Array:
                layer.look(values[0])
                return layer.forward(x, streams)

            return looking, node.inputs[0], node.output

        def joining(x: Array, streams: Streams | None, join: Join = layer) -> Array:
            return join.forward([values[value] for value in node.inputs])

        return joining, node.inputs[0], node.output

    def _keep(self, arena: Arena, node: Node, layer: Layer | Join, backward: int) -> None:
        """Says which arrays the backward pass reads, and shields what may not be overwritten."""
        for value in node.inputs:
            x = self.values[value]
            if isinstance(layer, Layer) and layer.keeps_input:
                arena.use(x, backward)
            shared = np.may_share_memory(x, layer.y)
            if shared and (value in self._shielded or self.network.graph.values[value].readers > 1):
                self._shielded.add(node.output)
        if isinstance(layer, Layer) and layer.keeps_output:
            arena.use(layer.y, backward)
            self._shielded.add(node.output)

    def _build_backward(self, arena: Arena, memories: list[Tenancy]) -> None:
        graph, count = self.network.graph, len(self.network.graph.nodes)
        gradient: dict[int, Array] = {graph.result: self.z}
        # By node: its own backward pass, and the sums of gradients that follow it.
        self.sums: list[list[tuple[Array, Array, Array]]] = [[] for _ in graph.nodes]
        self.incoming: list[Array] = [self.values[0]] * count
        self.outgoing = list(self.incoming)
        for moment in reversed(range(count)):
            node, layer, tick = graph.nodes[moment], self.layers[moment], 2 * count - moment
            if not graph.learning[node.output]:
                continue
            dy = self.incoming[moment] = gradient[node.output]
            arena.use(dy, tick)
            given = layer.prepare_backward(dy) if isinstance(layer, Layer) else layer.prepare_backward(dy, memories[moment])
            for value, dx in zip(node.inputs, [given] if isinstance(given, np.ndarray) else given, strict=True):
                if not graph.learning[value]:
                    continue
                arena.use(dx, tick)
                self.outgoing[moment] = dx
                before = gradient.get(value)
                if before is None:
                    gradient[value] = dx
                    continue
                arena.use(before, tick)
                total = memories[moment].input_gradient(dx.shape)
                self.sums[moment].append((before, dx, total))
                gradient[value] = total

    def forward(self, x: Array, streams: Streams | None, look: Callable[[int, Array], None] | None = None) -> Array:
        """x (S, R, *input) to the outputs z, in the layout that the loss reads; `look` sees each node's output."""
        if streams is not None and self.first:
            streams = streams.after(self.first)
        values = self.values
        values[0] = x
        for moment, (forward, source, output) in enumerate(self._forward):
            y = values[output] = forward(values[source], streams)
            if look is not None:
                look(moment, y)
        z = values[self.network.graph.result]
        if z is not self.z:
            np.copyto(self.z, z)
        return self.z

    def layer(self, moment: int) -> Layer:
        """The layer of a node."""
        layer = self.layers[moment]
        assert isinstance(layer, Layer)
        return layer

    def take_gradient(self, dz: Array) -> None:
        """Puts the gradient of the outputs where the last node reads it."""
        if dz is not self.z:
            np.copyto(self.z, dz)


@final
class Announcement:
    """Tells, between the programs of a backward pass, how many of them are done."""

    def __init__(self, finished: Callable[[int], None], count: int) -> None:
        self._finished, self._count = finished, count

    def run(self) -> bool:
        """Tells it; True, as of a program that met nothing that is not finite."""
        self._finished(self._count)
        return True


class NodeBackward(NamedTuple):
    """The backward pass of one node over a worker's stacks; a tuple, since every step takes it apart.

    `calls` are, for each stack, what is called, its dy, and the sums (before, dx, total) of gradients that follow it;
    `programs` combine the spans that the node completes.
    """

    moment: int
    calls: list[tuple[Callable[[Any], object], Array, list[tuple[Array, Array, Array]]]]
    programs: Sequence[Program | TiledSum | Announcement]


@final
class StepPass:
    """Forward and backward over a worker's stacks, its gradients combined into subtrees layer by layer."""

    def __init__(self, network: Network, stacks: Sequence[tuple[int, int]], nodes: Sequence[Subtree], gradients: Array) -> None:
        self.nodes = tuple(nodes)
        leaves = sum(shards for shards, _ in stacks)
        # Where every subtree is one shard, its gradient is written in place.
        direct = len(nodes) == leaves
        whole = [span for span in network.spans if span not in network.tiled]
        scratch = None if direct else span_stacks(whole, leaves, network.dtype)
        programs: dict[int, list[Program | TiledSum]] = {}
        views: dict[str, Array] = {}
        for number, span in enumerate(whole):
            stack = None if scratch is None else scratch[number]
            programs.setdefault(span.layer, []).append(plan_span(span, nodes, stack, gradients))
            views.update(_gradient_views(span, gradients[:leaves] if stack is None else stack, stack is not None))
        self.passes: list[StackPass] = []
        first = 0
        for shards, rows in stacks:
            own = {name: view[first : first + shards] for name, view in views.items()}
            self.passes.append(StackPass(network, shards, rows, own, first))
            first += shards
        graph = network.graph
        self._add_tiled_sums(network, programs, gradients)
        # From the last node down to the first that learns.
        self.backward = [
            NodeBackward(
                moment,
                [(own.layers[moment].backward, own.incoming[moment], own.sums[moment]) for own in self.passes],
                programs.pop(node.shapes.number, []) if node.kind == "layer" else [],
            )
            for moment, node in reversed(list(enumerate(graph.nodes)))
            if graph.learning[node.output]
        ]
        # Whom the last pass with announcements told, and that pass.
        self._announced: tuple[Callable[[int], None] | None, list[NodeBackward]] = (None, [])

    def _add_tiled_sums(self, network: Network, programs: dict[int, list[Program | TiledSum]], gradients: Array) -> None:
        moments = {node.shapes.number: at for at, node in enumerate(network.graph.nodes) if node.kind == "layer"}
        entries = [span.entries[0] for span in network.tiled]
        scratch = scratch_tiles([entry.internal_shape for entry in entries], self.nodes, network.dtype)
        for entry in entries:
            leaves = [(own.layer(moments[entry.layer]), shard) for own in self.passes for shard in range(own.shards)]
            rows = gradients[: len(self.nodes), entry.offset : entry.offset + entry.size]
            out = rows.reshape(len(self.nodes), *entry.internal_shape)
            programs.setdefault(entry.layer, []).extend(
                TiledSum(leaves, self.nodes, out, slice(first, end), scratch)
                for first, end in pairwise(tile_borders(*entry.internal_shape))
            )

    def _announcing(self, finished: Callable[[int], None]) -> list[NodeBackward]:
        """The backward pass with announcements to `finished`; kept for the next step."""
        if self._announced[0] != finished:
            backward, count = [], 0
            for moment, calls, programs in self.backward:
                # The first one follows the node's own pass, and says nothing new.
                told: list[Program | TiledSum | Announcement] = [Announcement(finished, count)]
                for program in programs:
                    count += 1
                    told += (program, Announcement(finished, count))
                backward.append(NodeBackward(moment, calls, told))
            self._announced = (finished, backward)
        return self._announced[1]

    def losses(self, stacks: Sequence[tuple[Array, Any]], streams: Streams | None) -> tuple[list[float], list[float]]:
        """(loss sums, denominators) by shard: the forward half of `run`."""
        loss_sums: list[float] = []
        denominators: list[float] = []
        for stack_pass, (x, y) in zip(self.passes, stacks, strict=True):
            loss = stack_pass.loss
            loss.forward(stack_pass.forward(x, streams), y)
            loss_sums.extend(loss.loss_sums.tolist())
            denominators.extend(loss.denominators.tolist())
        return loss_sums, denominators

    def run(
        self,
        stacks: Sequence[tuple[Array, Any]],
        streams: Streams | None,
        finished: Callable[[int], None] | None = None,
        after_forward: Callable[[], None] | None = None,
    ) -> tuple[list[float], list[float], bool]:
        """(loss sums, denominators) by shard, and whether all gradients are finite; these lie in the model's rows.

        `finished` is told how many of the network's `finished_ranges` are complete, at least once after each.
        """
        loss_sums, denominators = self.losses(stacks, streams)
        if after_forward is not None:
            after_forward()
        for stack_pass in self.passes:
            stack_pass.take_gradient(stack_pass.loss.backward())
        finite = True
        for _, calls, programs in self.backward if finished is None else self._announcing(finished):
            for backward, dy, sums in calls:
                backward(dy)
                for before, dx, total in sums:
                    np.add(before, dx, out=total)
            for program in programs:
                finite &= program.run()
        return loss_sums, denominators, finite


def _gradient_views(span: Span, rows: Array, relative: bool) -> dict[str, Array]:
    """The span's tensors (leaves, *internal shape) in the leaves' gradients."""
    start = span.first if relative else 0
    return {
        entry.name: rows[:, entry.offset - start : entry.offset - start + entry.size].reshape(len(rows), *entry.internal_shape)
        for entry in span.entries
    }
