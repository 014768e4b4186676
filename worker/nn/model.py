"""The model: a flat vector of parameters, and passes over stacks of shards that fill flat vectors of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any, final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lockstep.contract.arithmetic import EVALUATION_BLOCK_ROWS
from lockstep.contract.errors import UserError
from worker.limits import MAX_PASSES
from worker.nn.combination import Subtree, check_nodes, tree_sum
from worker.nn.initializers import INITIALIZERS
from worker.nn.layers import Layout
from worker.nn.losses import build_loss
from worker.nn.metrics import Counts, Sums, block_metrics
from worker.nn.parameters import Array, aligned_zeros, public_views
from worker.nn.passes import Network, StackPass, StepPass
from worker.nn.search import NonFinitePlace, search
from worker.nn.shapes import layer_shapes, layout_of
from worker.nn.streams import Streams
from worker.randomness import Purpose, Stream
from worker.specs import Architecture, LossRecord

Stack = tuple[Array, NDArray[Any]]


@final
@dataclass(slots=True)
class Result:
    """Sums of a pass. `loss_sums` and `denominators` are per subtree, in float64; `finite` says whether all sums are."""

    loss_sums: tuple[float, ...]
    denominators: tuple[float, ...]
    finite: bool

    @property
    def loss_sum(self) -> float:
        """The loss sum of a single subtree, or the sum over the subtrees in their order."""
        return sum(self.loss_sums[1:], self.loss_sums[0])

    @property
    def denominator(self) -> float:
        """What the loss sum is divided by, over all subtrees: rows, positions, or the sum of the labels' factors."""
        return sum(self.denominators)


@final
@dataclass(slots=True)
class _Known:
    """Stacks that were found right, held so that nothing else can have their identity."""

    stacks: tuple[Stack, ...]
    combine: tuple[Subtree, ...] | None
    step: StepPass


@final
class Model:
    """A network with its parameters.

    `parameters` (P,) and `gradients` (subtrees, P) are the vectors given (shared memory, say) or new ones. Floats between
    tensors are zero and must stay so. Without given parameters the initial weights are drawn from `seed`.
    Raises UserError where the shapes of layers do not meet.
    """

    def __init__(
        self,
        architecture: Architecture,
        loss: LossRecord,
        *,
        input_shape: tuple[int, ...] | None = None,
        seed: int = 0,
        dtype: DTypeLike = np.float32,
        parameters: Array | None = None,
        gradients: Array | None = None,
    ) -> None:
        shapes = layer_shapes(architecture, input_shape)
        self.architecture, self.loss, self.seed = architecture, loss, seed
        self.dtype = np.dtype(dtype)
        self.layout = layout_of(shapes)
        self.parameters = aligned_zeros((self.layout.size,), self.dtype) if parameters is None else parameters
        self._check_vector("parameters", self.parameters, (self.layout.size,))
        self._gradients = aligned_zeros((1, self.layout.size), self.dtype) if gradients is None else gradients
        self._owns_gradients = gradients is None
        self._check_vector("gradients", self._gradients, (len(self._gradients), self.layout.size))
        self._network = Network(loss, shapes, self.layout, self.parameters)
        self.input_shape = self._network.input_shape
        # One row is enough to ask what targets the loss takes.
        asked = build_loss(loss, 1, 1, self._network.output_shape, self.dtype, training=False)
        self.target_dtype = np.dtype(asked.target_dtype)
        self.target_shape = asked.target_shape(self._network.output_shape)
        self._steps: dict[tuple[Any, ...], StepPass] = {}
        self._known: dict[int, _Known] = {}
        self._evaluation: StackPass | None = None
        self._metrics = block_metrics(loss, self._network.output_shape)
        self.after_forward: Callable[[], None] | None = None  # a probe of the fault tests, called between the two passes
        if parameters is None:
            self.initialize()

    @property
    def gradients(self) -> Array:
        """(subtrees, P): the gradient sums of the last pass, in its first rows."""
        return self._gradients

    def named_parameters(self) -> dict[str, Array]:
        """The tensors in their public layout by name ("0.dense.weight"): views, so that writing to them changes the model."""
        return public_views(self.layout, self.parameters)

    def named_gradients(self, row: int = 0) -> dict[str, Array]:
        """The gradient sums of a subtree in the public layout, as views."""
        return public_views(self.layout, self._gradients[row])

    def initialize(self) -> None:
        """Draws the initial weights from the seed: from each layer's stream its tensors in turn, in public C order."""
        self.parameters.fill(0)
        tensors = self.named_parameters()
        by_layer = attrgetter("layer")
        for layer, entries in groupby(sorted(self.layout.entries, key=by_layer), by_layer):
            stream = Stream(self.seed, Purpose.INITIAL_WEIGHTS, layer=layer)
            for entry in entries:
                tensors[entry.name][...] = INITIALIZERS[entry.initial.kind](stream, entry.initial, entry.shape)

    @property
    def finished_ranges(self) -> tuple[tuple[int, int], ...]:
        """The ranges of the flat vector in the order in which a backward pass completes them: by the network alone."""
        return self._network.finished_ranges

    def loss_and_gradient(
        self,
        stacks: Sequence[Stack],
        combine: Sequence[Subtree] | None = None,
        streams: Streams | None = None,
        finished: Callable[[int], None] | None = None,
    ) -> Result:
        """One forward and one backward pass over one or two stacks of equal shards.

        A stack is (x, y): x (S, R, *input_shape), y (S, R, *target), C-contiguous, in ascending shard order. `combine` are the
        tree's maximal nodes inside these shards, counted from the first of them; unless given, the one tree over all. A node
        that reaches past the last shard stands for one whose shards there are empty. Fills the first rows of `gradients`
        with one gradient sum per node. `finished` is told during the backward pass how many of `finished_ranges` are complete
        in all of them: at least once after each, in their order.
        """
        step = self._step(stacks, combine)
        losses, denominators, finite = step.run(stacks, streams, finished, self.after_forward)
        if len(losses) == 1:
            return Result((losses[0],), (denominators[0],), finite and math.isfinite(losses[0]))
        loss_sums = tuple([tree_sum(node, losses) for node in step.nodes])
        weights = tuple([tree_sum(node, denominators) for node in step.nodes])
        return Result(loss_sums, weights, finite and math.isfinite(sum(losses)))

    def loss_sum(
        self, stacks: Sequence[Stack], combine: Sequence[Subtree] | None = None, streams: Streams | None = None
    ) -> float:
        """The loss sum of `loss_and_gradient` by its forward pass alone; `gradients` stay as they are."""
        step = self._step(stacks, combine)
        losses = step.losses(stacks, streams)[0]
        return Result(tuple([tree_sum(node, losses) for node in step.nodes]), (), True).loss_sum

    def locate_non_finite(
        self, stacks: Sequence[Stack], combine: Sequence[Subtree] | None = None, streams: Streams | None = None
    ) -> NonFinitePlace | None:
        """Where the pass first meets a number that is not finite; None if it meets none. Slow: for use after a hit."""
        return search(self._network, self._step(stacks, combine), stacks, streams)

    def predict(self, x: Array) -> Array:
        """The outputs (N, *output) of x (N, *input_shape), in blocks of 256 rows, the last one filled up with zeros.

        A row's bits depend on the parameters, its values and its place in its block; never on how many rows there are.
        """
        rows = len(x)
        self._check_rows(x, rows)
        shape = self._network.output_shape
        out = np.empty((rows, *shape), self.dtype)
        for first in range(0, rows, EVALUATION_BLOCK_ROWS):
            part = x[first : first + EVALUATION_BLOCK_ROWS]
            z = self._evaluate(part)[0]
            rows_first = z if self._network.result_layout is Layout.ROWS_FIRST else z.T
            out[first : first + len(part)] = rows_first[: len(part)]
        return out

    def new_counts(self) -> Counts:
        """Room for what `evaluate_block` counts."""
        return Counts(self._metrics.classes)

    def evaluate_block(self, x: Array, y: NDArray[Any], counts: Counts) -> Sums:
        """The sums of at most 256 rows, computed as a block of 256 filled up with zeros; adds their labels to `counts`."""
        rows = len(x)
        self._check_rows(x, rows)
        if rows > EVALUATION_BLOCK_ROWS or y.shape != (rows, *self.target_shape) or y.dtype != self.target_dtype:
            self._refuse(x[None], y[None])
        z = self._evaluate(x)
        evaluation = self._evaluation_pass()
        target = self._evaluation_target
        target[0, :rows] = y
        target[0, rows:] = 0
        # The targets are checked and the outputs measured before the loss overwrites them.
        evaluation.loss.check(target)
        measured = self._metrics.measure(z, target, rows, counts)
        evaluation.loss.forward(z, target)
        loss_sum = float(np.add.reduce(evaluation.loss.row_losses[0, :rows]))
        denominator = float(np.add.reduce(evaluation.loss.row_denominators[0, :rows]))
        log_loss_sum = loss_sum if self._metrics.loss_is_log_loss else measured.log_loss_sum
        return replace(measured, loss_sum=loss_sum, denominator=denominator, log_loss_sum=log_loss_sum)

    def _step(self, stacks: Sequence[Stack], combine: Sequence[Subtree] | None) -> StepPass:
        """The buffers for these stacks; a tuple that came before, as that of a worker's own buffers does, is not looked at
        again."""
        known = self._known.get(id(stacks))
        if known is not None and known.combine is combine:
            return known.step
        if not 1 <= len(stacks) <= 2:
            raise UserError.of("model", f"{len(stacks)} stacks", "it takes one stack or two", "WRONG_SHAPE")
        key = (tuple([x.shape for x, _ in stacks]), None if combine is None else tuple(combine))
        step = self._steps.get(key) or self._plan(key)
        for x, y in stacks:
            if x.dtype != self.dtype or y.dtype != self.target_dtype or not (x.flags.c_contiguous and y.flags.c_contiguous):
                self._refuse(x, y)
            if y.shape[:2] != x.shape[:2] or y.shape[2:] != self.target_shape:
                self._refuse(x, y)
        if isinstance(stacks, tuple) and (combine is None or isinstance(combine, tuple)):
            if len(self._known) >= MAX_PASSES:
                self._known.clear()
            self._known[id(stacks)] = _Known(stacks, combine, step)
        return step

    def _plan(self, key: tuple[Any, ...]) -> StepPass:
        """The buffers of a new shape; everything about shapes is checked here, before anything is allocated."""
        shapes, combine = key
        for shape in shapes:
            if len(shape) < 2 or shape[2:] != self.input_shape:
                got = f"rows of shape {shape[2:]} in a stack of shape {shape}"
                raise UserError.of(self._network.shapes[0].place, got, f"it needs {self.input_shape}", "WRONG_SHAPE")
            if 0 in shape[:2]:
                remedy = "a pass needs at least one shard of at least one row"
                raise UserError.of(self._network.shapes[0].place, f"a stack of shape {shape}", remedy, "EMPTY_BATCH")
        leaves = sum(shape[0] for shape in shapes)
        nodes: tuple[Subtree, ...] = ((0, leaves),) if combine is None else combine
        check_nodes(nodes, leaves)
        self._reserve(len(nodes))
        while len(self._steps) >= MAX_PASSES:
            del self._steps[next(iter(self._steps))]
            self._known.clear()
        stacks = [(shape[0], shape[1]) for shape in shapes]
        step = self._steps[key] = StepPass(self._network, stacks, nodes, self._gradients)
        return step

    def _reserve(self, rows: int) -> None:
        """Makes room for `rows` gradient vectors, where they are the model's own."""
        if rows <= len(self._gradients):
            return
        if not self._owns_gradients:
            raise ValueError(f"gradients: got {len(self._gradients)} rows; {rows} subtrees need as many")
        self._gradients = aligned_zeros((rows, self.layout.size), self.dtype)
        self._steps.clear()
        self._known.clear()

    def _evaluation_pass(self) -> StackPass:
        if self._evaluation is None:
            self._evaluation = StackPass(self._network, 1, EVALUATION_BLOCK_ROWS, None)
            self._evaluation_rows = aligned_zeros((1, EVALUATION_BLOCK_ROWS, *self.input_shape), self.dtype)
            self._evaluation_target = np.zeros((1, EVALUATION_BLOCK_ROWS, *self.target_shape), self.target_dtype)
        return self._evaluation

    def _evaluate(self, x: Array) -> Array:
        """Outputs of at most 256 rows in a block of 256, as the loss reads them, a buffer of the pass."""
        evaluation = self._evaluation_pass()
        block = self._evaluation_rows
        block[0, : len(x)] = x
        block[0, len(x) :] = 0
        return evaluation.forward(block, None)

    def _check_rows(self, x: Array, rows: int) -> None:
        place = self._network.shapes[0].place
        if x.shape[1:] != self.input_shape:
            raise UserError.of(place, f"rows of shape {x.shape[1:]}", f"it needs {self.input_shape}", "WRONG_SHAPE")
        if rows == 0:
            raise UserError.of(place, "0 rows", "it needs at least one row", "EMPTY_BATCH")

    def _check_vector(self, name: str, vector: Array, shape: tuple[int, ...]) -> None:
        if vector.shape != shape or vector.dtype != self.dtype or not vector.flags.c_contiguous:
            raise ValueError(f"{name}: got {vector.dtype} {vector.shape}; it must be C-contiguous {self.dtype} {shape}")

    def _refuse(self, x: Array, y: NDArray[Any]) -> None:
        got = f"inputs {x.dtype} {x.shape} and targets {y.dtype} {y.shape}"
        inputs = f"C-contiguous inputs {self.dtype} (S, R, *{self.input_shape})"
        remedy = f"it needs {inputs} and targets {self.target_dtype} (S, R, *{self.target_shape})"
        raise UserError.of(self._network.shapes[0].place, got, remedy, "WRONG_SHAPE")
