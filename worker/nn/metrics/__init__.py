"""The metrics of an evaluation: what is summed and counted over blocks of rows, and the values that come of it."""

from __future__ import annotations

from worker.nn.metrics.block import BlockMetrics, block_metrics
from worker.nn.metrics.counts import Counts
from worker.nn.metrics.sums import Moments, Sums
from worker.nn.metrics.values import Scores, class_values, metric_values

__all__ = ["BlockMetrics", "Counts", "Moments", "Scores", "Sums", "block_metrics", "class_values", "metric_values"]
