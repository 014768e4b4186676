"""An estimate of the memory that a worker needs."""

from __future__ import annotations

import math

from lockstep.contract.arithmetic import EVALUATION_BLOCK_ROWS, shard_rows
from worker.nn.shapes.layout import BLOCK_FLOATS, TILE_FLOATS, TILE_ROWS, aligned, layout_of
from worker.nn.shapes.network import layer_shapes
from worker.nn.shapes.shape import LayerShapes, Shape, flattened
from worker.specs import Architecture, Conv1dRecord, Conv2dRecord, DenseRecord, LossRecord, SoftmaxCrossEntropyRecord

# What a worker's process holds before it has a model: Python, NumPy and the stubs.
PROCESS_BYTES = 96 << 20

# What a loss holds for each output, its target included, in float32.
OUTPUTWISE = {"mean_squared_error": 2, "mean_absolute_error": 2, "huber": 4, "binary_cross_entropy": 6}

# What softmax cross-entropy holds for each label, its target included; and where labels are weighed or ignored.
LABELS, WEIGHED_LABELS = 12, 24

# Blocks and pieces of layers that do not grow with the rows.
SCRATCH_FLOATS = 1 << 20


def worker_memory_bytes(
    architecture: Architecture, loss: LossRecord, *, batch_size: int, shards: int, workers: int, optimizer_states: int
) -> int:
    """What one worker is expected to hold at most: vectors, gradient stacks, activations, the process itself.

    The parameters count in full, though workers of a node share one copy; dataset pages that the system can drop do not count.
    """
    chain = layer_shapes(architecture)
    layers = list(flattened(chain))
    size = layout_of(chain).size
    own_shards = max((rank + 1) * shards // workers - rank * shards // workers for rank in range(workers))
    rows_of_shards = [end - first for first, end in shard_rows(batch_size, shards, architecture.least_shard_rows)]
    rows = own_shards * rows_of_shards[0]
    subtrees = min(own_shards, max(1, 2 * (own_shards.bit_length() - 1))) if workers > 1 else 1
    vectors = size * (1 + subtrees) + optimizer_states * (size // workers + BLOCK_FLOATS)
    stack = own_shards * max(min(size, BLOCK_FLOATS), *(_stacked(layer) for layer in layers))
    stack += (own_shards - 1).bit_length() * max(_tile(layer) for layer in layers)
    # Rows as they are gathered, and with the rows last.
    per_row = 2 * math.prod(architecture.input_shape) + _loss_numbers(loss, chain[-1].output_shape)
    per_row += sum(3 * math.prod(layer.output_shape) + layer.kept for layer in layers)
    # Filters of the largest convolution and their gradient, as products take them.
    filters = 6 * max((math.prod(layer.tensors["weight"].shape) for layer in layers if _convolves(layer)), default=0)
    # Twice: the short batch of an epoch has buffers of its own.
    floats = vectors + 2 * (stack + filters) + (2 * rows + EVALUATION_BLOCK_ROWS) * per_row + SCRATCH_FLOATS
    return PROCESS_BYTES + 4 * floats


def _stacked(layer: LayerShapes) -> int:
    """Floats of a layer's gradients that each shard has its own copy of."""
    tiled = {"weight"} if _tile(layer) else set()
    return sum(aligned(math.prod(tensor.shape)) for name, tensor in layer.tensors.items() if name not in tiled)


def _tile(layer: LayerShapes) -> int:
    """Floats of a tile of a layer's weight; 0 where its gradient is not summed by tiles."""
    if not isinstance(layer.record, DenseRecord):
        return 0
    inputs, units = layer.tensors["weight"].shape
    return min(inputs * units, max(TILE_FLOATS, TILE_ROWS * inputs)) if inputs * units > BLOCK_FLOATS else 0


def _loss_numbers(loss: LossRecord, output: Shape) -> int:
    """Of one row."""
    if not isinstance(loss, SoftmaxCrossEntropyRecord):
        return OUTPUTWISE[loss.kind] * math.prod(output)
    weighed = loss.class_weights or loss.ignored_label is not None
    return math.prod(output) + (WEIGHED_LABELS if weighed else LABELS) * math.prod(output[:-1])


def _convolves(layer: LayerShapes) -> bool:
    return isinstance(layer.record, Conv1dRecord | Conv2dRecord)
