"""What an evaluation counts: labels by class, and by score where there are two classes."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

# Scores are counted by the nearest number of IEEE 754 binary16: it has so many bit patterns.
SCORE_BINS = 1 << 16


@final
class Counts:
    """Counts of labels over any blocks. Whole numbers are exact, so neither order nor split of the blocks matters.

    `support`, `predicted` and `correct` (K,) are the labels of a class, how often it was the first largest output, and how
    often rightly. `scores` (2, 65,536) are, for two classes, the labels 0 and 1 by the bin of their score; else it is empty.
    """

    def __init__(self, classes: int) -> None:
        self.support, self.predicted, self.correct = (np.zeros(classes, np.int64) for _ in range(3))
        self.scores = np.zeros((2, SCORE_BINS if classes == 2 else 0), np.int64)

    def clear(self) -> None:
        """Back to nothing counted."""
        for counts in (self.support, self.predicted, self.correct, self.scores):
            counts.fill(0)

    def add(self, labels_N: I64, predicted_N: I64) -> int:
        """Counts labels and what was predicted for them, both 0 to K - 1. Returns how many are right."""
        right_N = predicted_N == labels_N
        classes = len(self.support)
        self.support += np.bincount(labels_N, minlength=classes)
        self.predicted += np.bincount(predicted_N, minlength=classes)
        self.correct += np.bincount(labels_N[right_N], minlength=classes)
        return int(np.count_nonzero(right_N))

    def add_scores(self, labels_N: I64, scores_N: NDArray[Any]) -> None:
        """Counts scores, real numbers that grow with the chance of class 1; a NaN is left out."""
        known_N = scores_N == scores_N
        bins_N, labels_N = score_bins(scores_N[known_N]), labels_N[known_N]
        for label in (0, 1):
            self.scores[label] += np.bincount(bins_N[labels_N == label], minlength=SCORE_BINS)


def score_bins(scores_N: NDArray[Any]) -> NDArray[np.uint16]:
    """The bin of each score: the pattern of its nearest binary16, changed so that bins rise with scores.

    Different scores share a bin only if they differ by at most 2^-10 of the larger or, near 0, by at most 2^-24, or if both are
    at least 65,520, or at most -65,520.
    """
    with np.errstate(over="ignore"):
        half_N = scores_N.astype(np.float16)
    half_N += np.float16(0)  # -0 becomes 0
    bits_N = half_N.view(np.uint16)
    return np.where(bits_N >= 0x8000, ~bits_N, bits_N | 0x8000)
