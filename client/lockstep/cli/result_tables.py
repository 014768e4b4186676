"""The tables of a gradient check and of a replay."""

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


def replay_table(found: training_job_pb2.ReplayResult) -> None:
    """What a replay gave, a line for each step that was hashed."""
    rows = []
    for step in found.steps:
        held = step.checkpoint_weights_sha256[:12]
        same = step.checkpoint_weights_sha256 == step.weights_sha256, step.checkpoint_optimizer_sha256 == step.optimizer_sha256
        said = [word for word, equal in zip(("weights differ", "optimizer differs"), same, strict=True) if not equal]
        rows.append((f"{step.step:,}", step.weights_sha256[:12], held, (", ".join(said) or "same") if held else ""))
    table(("STEP", "REPLAYED", "CHECKPOINT", ""), rows)


def _bounded(value: float, bound: float) -> str:
    return number(value, 2) if value < bound else f"{number(value, 2)} *"
