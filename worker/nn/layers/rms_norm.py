"""RMS normalization."""

from __future__ import annotations

from typing import ClassVar, final

from worker.nn.layers.layer_norm import LastAxisNorm


@final
class RmsNorm(LastAxisNorm):
    """y = h w, h = x r, r = 1 / sqrt(mean(x^2) + epsilon), means over D (Zhang and Sennrich 2019).

    Shapes: x, y (S, R, ..., D) as (S, N, D), N the positions of a shard's rows; w (D,).
    Backward: dw = 1 (dy h), dx = r (w dy - h mean(w dy h)).
    Raises UserError if x has not the shape it was built for.
    """

    centres: ClassVar[bool] = False
