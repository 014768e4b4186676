"""The metrics of an evaluation in words, and the table of classes."""

from __future__ import annotations

from lockstep.cli.output import number, percent
from lockstep.v1 import training_job_pb2

NO_VALUE = "-"

# What people call a metric, where that is not its field's name with spaces.
NAMES = {
    "top_5_accuracy": "top-5 accuracy",
    "f1": "F1",
    "class_1_precision": "precision of class 1",
    "class_1_recall": "recall of class 1",
    "class_1_f1": "F1 of class 1",
    "auc": "ROC AUC",
    "r2": "R2",
}

# Parts of a whole, said in percent.
PARTS = {"top_5_accuracy", "precision", "recall", "class_1_precision", "class_1_recall"}

# What a line about an evaluation has besides loss and accuracy.
HEADLINES = ("auc", "perplexity", "r2")


def metric_words(name: str, value: float) -> str:
    """`ROC AUC 0.9812`."""
    return f"{NAMES.get(name, name.replace('_', ' '))} {percent(value) if name in PARTS else number(value)}"


def all_metrics(metrics: training_job_pb2.ValidationMetrics) -> str:
    """All that have a value, in the order of their fields."""
    return ", ".join(metric_words(field.name, value) for field, value in metrics.ListFields())


def class_row(one: training_job_pb2.ClassMetrics) -> tuple[str, ...]:
    """A class's name, support, precision, recall and F1; "-" for what has no value."""
    return (
        one.name or str(one.label),
        f"{one.support:,}",
        percent(one.precision) if one.HasField("precision") else NO_VALUE,
        percent(one.recall) if one.HasField("recall") else NO_VALUE,
        number(one.f1) if one.HasField("f1") else NO_VALUE,
    )
