"""From the sums of an evaluation to its metrics. Where a metric is 0/0 or not finite it has no value and is left out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TypeAlias

from worker.nn.metrics.block import TOP
from worker.nn.metrics.sums import Moments, Sums

# Labels by bin of score: (of class 0, of class 1), bins without any left out.
Scores: TypeAlias = Mapping[int, tuple[int, int]]

# exp of more is above the largest float64.
LARGEST_EXPONENT = 709.0


def metric_values(
    sums: Sums, support: Sequence[int], predicted: Sequence[int], correct: Sequence[int], scores: Scores, positions: bool
) -> dict[str, float]:
    """The metrics that have a value, by name; `positions` says that rows have a label at each of several positions.

    Of classes: "accuracy", "top_5_accuracy" (above 5 classes), "precision", "recall" and "f1" (means over the classes),
    "log_loss" (mean of -log of the label's probability), "perplexity" (its exp; with positions). Of two classes also
    "class_1_precision", "class_1_recall", "class_1_f1" and "auc". Of numbers: "mean_squared_error", "mean_absolute_error" and
    "r2".
    """
    values: dict[str, float | None] = {}
    if sums.labels:
        values["accuracy"] = sums.correct / sums.labels
        values["top_5_accuracy"] = sums.top_5 / sums.labels if len(support) > TOP else None
        values |= macro_averages(support, predicted, correct)
        if len(support) == 2:
            of_class_1 = class_values(support[1], predicted[1], correct[1])
            values |= dict(zip(("class_1_precision", "class_1_recall", "class_1_f1"), of_class_1, strict=True))
            # A score that is not a number stands in no bin, and then there is no order to judge.
            known = sum(map(sum, scores.values())) == sums.labels
            values["auc"] = area_under_the_curve(scores) if known else None
        values["log_loss"] = log_loss = sums.log_loss_sum / sums.labels
        values["perplexity"] = exp(log_loss) if positions else None
    if sums.numbers:
        values["mean_squared_error"] = sums.squared_error_sum / sums.numbers
        values["mean_absolute_error"] = sums.absolute_error_sum / sums.numbers
        values["r2"] = r2(sums.moments) if sums.moments is not None else None
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def class_values(support: int, predicted: int, correct: int) -> tuple[float | None, float | None, float | None]:
    """(precision, recall, F1) of one class: correct / predicted, correct / support, 2 correct / (support + predicted)."""
    return (
        correct / predicted if predicted else None,
        correct / support if support else None,
        2 * correct / (support + predicted) if support + predicted else None,
    )


def macro_averages(support: Sequence[int], predicted: Sequence[int], correct: Sequence[int]) -> dict[str, float]:
    """Means of precision, recall and F1 over the classes that occur among labels or predictions; what has no value is 0."""
    found = [class_values(*counts) for counts in zip(support, predicted, correct, strict=True) if counts[0] or counts[1]]
    by_metric = zip(*found, strict=True)
    return {name: _mean([value or 0.0 for value in by_class]) for name, by_class in zip(_MACRO, by_metric, strict=True)}


_MACRO = ("precision", "recall", "f1")


def area_under_the_curve(scores: Scores) -> float | None:
    """Area under the ROC curve: the share of pairs of a label 1 and a label 0 where the 1 has the higher bin, ties half.

    Exact in whole numbers but for the last division. It differs from the area of the scores themselves by at most half the
    share of the pairs that fall into one bin. None without a label of each class.
    """
    below = doubled = 0
    positives = sum(ones for _, ones in scores.values())
    for score in sorted(scores):
        zeros, ones = scores[score]
        doubled += ones * (2 * below + zeros)
        below += zeros
    pairs = positives * below
    return doubled / (2 * pairs) if pairs else None


def r2(moments: Moments) -> float | None:
    """Mean over the outputs of 1 - sum of (z - y)^2 / sum of (y - mean)^2; outputs whose target never changes are left out."""
    sums = zip(moments.errors.tolist(), moments.deviations.tolist(), strict=True)
    found = [1 - errors / deviations for errors, deviations in sums if deviations > 0]
    return _mean(found) if found and all(map(math.isfinite, found)) else None


def exp(value: float) -> float | None:
    """e^value, rounded from decimal digits: the same on every machine, which a mathematical library does not promise."""
    return float(Decimal(value).exp()) if value <= LARGEST_EXPONENT else None


def _mean(values: Iterable[float]) -> float:
    """With one rounding for the whole sum."""
    listed = list(values)
    return math.fsum(listed) / len(listed)
