"""The table of a gradient check."""

from __future__ import annotations

from lockstep.cli.output import number, table
from lockstep.v1 import training_job_pb2


def gradient_table(found: training_job_pb2.GradientCheckResult) -> None:
    """What a gradient check found, a line for each tensor; `*` marks what is above its bound."""
    rows = []
    for tensor in found.tensors:
        skipped = f", {tensor.skipped:,} skipped" if tensor.skipped else ""
        rows.append(
            (
                tensor.name,
                " x ".join(map(str, tensor.shape)),
                f"{tensor.checked:,} of {tensor.elements:,}{skipped}",
                _bounded(tensor.worst_relative_error, found.tolerance),
                ", ".join(map(str, tensor.worst_index)),
                _bounded(tensor.float32_deviation, found.float32_tolerance),
            )
        )
    table(("TENSOR", "SHAPE", "CHECKED", "WORST ERROR", "AT", "FLOAT32"), rows)


def _bounded(value: float, bound: float) -> str:
    return number(value, 2) if value < bound else f"{number(value, 2)} *"
