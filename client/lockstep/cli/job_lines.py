"""A job in one line: its state and why, its result."""

from __future__ import annotations

from lockstep.cli.metric_words import HEADLINES, metric_words
from lockstep.cli.output import number, percent
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
