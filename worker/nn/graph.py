"""The network as a list of nodes in the order of the forward pass, residual and parallel layers taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

from worker.nn.layers import layer_class
from worker.nn.layers.layer import Layout
from worker.nn.shapes import LayerShapes
from worker.specs import ParallelRecord, ReluRecord, ResidualRecord


@final
@dataclass(slots=True)
class Value:
    """What flows between nodes: the network's input, or a node's output. `readers` is how many nodes take it."""

    layout: Layout
    readers: int = 0


@final
@dataclass(frozen=True, slots=True)
class Node:
    """One node: a layer, a change of layout before it, or the end of paths.

    `kind` is "layer", "turn" (to a view where `view`), "add" or "concatenate". `inputs` and `output` are numbers of values;
    `learns_before` says whether a node before it has tensors, so that a gradient must come down through it.
    """

    kind: str
    shapes: LayerShapes
    inputs: tuple[int, ...]
    output: int
    learns_before: bool
    layout: Layout
    activation: Any = None
    view: bool = False


@final
@dataclass(slots=True)
class Graph:
    """Nodes and the values between them; value 0 is the input, rows first, and `result` the output.

    `learning` says of each value whether it depends on a tensor. `shared_gradients` are the values whose gradient may be an
    array that others read too: what an add takes, and what leads to that alone.
    """

    nodes: list[Node] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    learning: list[bool] = field(default_factory=list)
    shared_gradients: set[int] = field(default_factory=set)
    result: int = 0

    @classmethod
    def of(cls, layers: Sequence[LayerShapes], result_layout: Layout) -> Graph:
        """The graph of a network whose loss reads the result in `result_layout`."""
        graph = cls()
        graph._value(Layout.ROWS_FIRST, False)
        result = graph._chain(layers, 0)
        graph.result = graph._in_layout(result, result_layout, layers[-1], view=False)
        graph.values[graph.result].readers += 1
        shared = graph.shared_gradients
        for node in reversed(graph.nodes):
            if node.kind == "add" or node.output in shared:
                shared.update(value for value in node.inputs if node.kind == "add" or graph.values[value].readers == 1)
        return graph

    def _chain(self, layers: Sequence[LayerShapes], value: int) -> int:
        index = 0
        while index < len(layers):
            layer, activation = layers[index], None
            if self._taken_behind(layers, index):
                index, activation = index + 1, layer.record
                layer = layers[index]
            index += 1
            if isinstance(layer.record, ResidualRecord | ParallelRecord):
                value = self._joined(layer, value)
                continue
            kind = layer_class(layer.record, layer.input_shape)
            follows = index < len(layers) and isinstance(layers[index].record, ReluRecord)
            if kind.absorbs_activation and follows and not self._taken_behind(layers, index):
                activation = layers[index].record
                index += 1
            layout = kind.layout(layer.record, layer.input_shape) or self.values[value].layout
            value = self._in_layout(value, layout, layer, kind.takes_strided_input)
            value = self._node("layer", layer, (value,), layout, activation=activation)
        return value

    @staticmethod
    def _taken_behind(layers: Sequence[LayerShapes], index: int) -> bool:
        """Whether a layer is a rectifier that the one behind it computes."""
        if not isinstance(layers[index].record, ReluRecord) or index + 1 == len(layers):
            return False
        behind = layers[index + 1]
        if isinstance(behind.record, ResidualRecord | ParallelRecord):
            return False
        return layer_class(behind.record, behind.input_shape).takes_activation_before

    def _joined(self, layer: LayerShapes, value: int) -> int:
        ends = [self._chain(branch, value) for branch in layer.branches]
        layout = self.values[ends[0]].layout
        ends = [self._in_layout(end, layout, layer, view=False) for end in ends]
        record = layer.record
        kind = record.join if isinstance(record, ParallelRecord) else "add"
        return self._node(kind, layer, tuple(ends), layout)

    def _in_layout(self, value: int, layout: Layout, layer: LayerShapes, view: bool) -> int:
        given = self.values[value].layout
        if given is layout:
            return value
        return self._node("turn", layer, (value,), layout, view=view, from_layout=given)

    def _node(
        self,
        kind: str,
        layer: LayerShapes,
        inputs: tuple[int, ...],
        layout: Layout,
        activation: Any = None,
        view: bool = False,
        from_layout: Layout | None = None,
    ) -> int:
        for value in inputs:
            self.values[value].readers += 1
        before = any(self.learning[value] for value in inputs)
        learns = before or (kind == "layer" and bool(layer.tensors))
        output = self._value(layout, learns)
        self.nodes.append(Node(kind, layer, inputs, output, before, from_layout or layout, activation, view))
        return output

    def _value(self, layout: Layout, learns: bool) -> int:
        self.values.append(Value(layout))
        self.learning.append(learns)
        return len(self.values) - 1
