"""A job in one line: its state and why, its result; and the tables of a gradient check and of a replay."""

from __future__ import annotations

from lockstep.cli.metric_words import HEADLINES, metric_words
from lockstep.cli.output import number, percent, table
from lockstep.v1 import training_job_pb2

State = training_job_pb2.TrainingJob.State

WAIT_STATES = [name for name in State.keys() if name != "STATE_UNSPECIFIED"]  # noqa: SIM118 - an enum wrapper, not a dict


def state_line(job: training_job_pb2.TrainingJob) -> str:
    """`jobs/digits-7f3a  FAILED: worker 1, step 812: out of memory`."""
    detail = f": {job.status_detail}" if job.status_detail else ""
    return f"{job.name}  {State.Name(job.state)}{detail}"


def result_words(outcome: training_job_pb2.Result) -> str:
    """A result in one line: step, losses, accuracy, the metrics that are told first, hash."""
    words = [f"step {outcome.step:,}"] if outcome.step else []
    if outcome.HasField("loss"):
        words.append(f"loss {number(outcome.loss)}")
    if outcome.HasField("validation_loss"):
        words.append(f"validation loss {number(outcome.validation_loss)}")
    if outcome.HasField("validation_accuracy"):
        words.append(f"validation accuracy {percent(outcome.validation_accuracy)}")
    metrics = outcome.validation_metrics.ListFields()
    words += [metric_words(field.name, value) for field, value in metrics if field.name in HEADLINES]
    if outcome.weights_sha256:
        words.append(f"weights_sha256 {outcome.weights_sha256}")
    return ", ".join(words)


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
