"""An evaluation's metrics as people see them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lockstep.contract.manifest import CLASSES_REPORTED
from lockstep.v1 import training_job_pb2 as job
from worker.nn.metrics import class_values

_KNOWN = job.ValidationMetrics.DESCRIPTOR.fields_by_name


def metrics_message(values: Mapping[str, float]) -> job.ValidationMetrics:
    """The metrics that have a value; what a newer version wrote into a manifest and this one does not know is passed over."""
    return job.ValidationMetrics(**{name: value for name, value in values.items() if name in _KNOWN})


def class_messages(classes: Mapping[str, Sequence[int]], names: Sequence[str]) -> list[job.ClassMetrics]:
    """The first classes in the order of their labels, from the lists "support", "predicted" and "correct"."""
    if not classes:
        return []
    counts = zip(classes["support"], classes["predicted"], classes["correct"], strict=True)
    messages = []
    for label, (support, predicted, correct) in zip(range(CLASSES_REPORTED), counts, strict=False):
        precision, recall, f1 = class_values(support, predicted, correct)
        messages.append(
            job.ClassMetrics(
                label=label,
                name=names[label] if label < len(names) else "",
                support=support,
                predicted=predicted,
                correct=correct,
                precision=precision,
                recall=recall,
                f1=f1,
            )
        )
    return messages
