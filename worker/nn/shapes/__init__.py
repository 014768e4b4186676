"""Every layer's output and tensor shapes, the flat vector's layout and a memory estimate; no NumPy."""

from worker.nn.shapes.dataset import check_against_dataset
from worker.nn.shapes.layout import (
    ALIGNMENT_FLOATS,
    BLOCK_FLOATS,
    NORM_BLOCK,
    TILE_FLOATS,
    TILE_ROWS,
    ParameterLayout,
    TensorEntry,
    aligned,
    layout_of,
    parameter_layout,
)
from worker.nn.shapes.memory import PROCESS_BYTES, worker_memory_bytes
from worker.nn.shapes.network import layer_shapes
from worker.nn.shapes.shape import Initial, LayerShapes, Role, TensorShape, flattened

__all__ = [
    "ALIGNMENT_FLOATS",
    "BLOCK_FLOATS",
    "NORM_BLOCK",
    "PROCESS_BYTES",
    "TILE_FLOATS",
    "TILE_ROWS",
    "Initial",
    "LayerShapes",
    "ParameterLayout",
    "Role",
    "TensorEntry",
    "TensorShape",
    "aligned",
    "check_against_dataset",
    "flattened",
    "layer_shapes",
    "layout_of",
    "parameter_layout",
    "worker_memory_bytes",
]
