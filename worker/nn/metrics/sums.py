"""What an evaluation adds up along the tree of blocks: sums in float64, counts in whole numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Moments:
    """Of numbers to predict, per output (W,): the mean of the targets over `rows`, and two sums of squares.

    `deviations` is the sum of (y - mean)^2, `errors` that of (z - y)^2. Means are carried, not sums of squares about 0, which
    would cancel where the targets lie far from 0 (Chan, Golub and LeVeque 1979).
    """

    rows: int
    means: F64
    deviations: F64
    errors: F64

    def plus(self, other: Moments) -> Moments:
        """Of the rows of both."""
        rows = self.rows + other.rows
        delta = other.means - self.means
        return Moments(
            rows,
            self.means + delta * (other.rows / rows),
            self.deviations + other.deviations + delta * delta * (self.rows * other.rows / rows),
            self.errors + other.errors,
        )


@final
@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over the rows of a node of the tree.

    `labels` are those that count, the ignored one left out: of them `correct` are the first largest output and `top_5` are
    among the first five. `numbers` are the numbers to predict that were compared. What does not apply is 0.
    """

    rows: int
    loss_sum: float = 0.0
    denominator: float = 0.0
    labels: int = 0
    correct: int = 0
    top_5: int = 0
    log_loss_sum: float = 0.0
    numbers: int = 0
    squared_error_sum: float = 0.0
    absolute_error_sum: float = 0.0
    moments: Moments | None = None

    def plus(self, other: Sums) -> Sums:
        """Of the rows of both."""
        moments = None
        if self.moments is not None and other.moments is not None:
            moments = self.moments.plus(other.moments)
        return Sums(
            self.rows + other.rows,
            self.loss_sum + other.loss_sum,
            self.denominator + other.denominator,
            self.labels + other.labels,
            self.correct + other.correct,
            self.top_5 + other.top_5,
            self.log_loss_sum + other.log_loss_sum,
            self.numbers + other.numbers,
            self.squared_error_sum + other.squared_error_sum,
            self.absolute_error_sum + other.absolute_error_sum,
            moments,
        )
