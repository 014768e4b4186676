"""The losses in PyTorch, from the options of their messages (proto/lockstep/v1/optimization.proto)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Options = dict[str, Any]


def softmax_cross_entropy(options: Options, z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z, y = z.reshape(-1, z.shape[-1]), y.reshape(-1)
    weights = torch.tensor(options.get("class_weights", [1.0] * z.shape[-1]))
    smoothing, ignored = options.get("label_smoothing", 0.0), options.get("ignored_label", -1)
    counted = y != ignored
    factor = torch.where(counted, weights[torch.where(counted, y, 0)], 0.0)
    if smoothing and "class_weights" in options:
        # PyTorch weighs the smooth part by all classes' weights; ours weighs all of a row by its label's.
        losses = F.cross_entropy(z, y, ignore_index=ignored, label_smoothing=smoothing, reduction="none") * factor
    else:
        losses = F.cross_entropy(z, y, weights, ignore_index=ignored, label_smoothing=smoothing, reduction="none")
    return losses.sum(), factor.sum()


def outputwise(function: Callable[[Options, torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """A loss that is a mean over a row's outputs; rows are added, and each counts 1."""

    def loss(options: Options, z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = len(z)
        losses = function(options, z, y.reshape(z.shape).to(z.dtype))
        return losses.reshape(rows, -1).mean(1).sum(), torch.tensor(float(rows))

    return loss


LOSSES: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "binary_cross_entropy": outputwise(lambda options, z, y: F.binary_cross_entropy_with_logits(z, y, reduction="none")),
    "mean_squared_error": outputwise(lambda options, z, y: F.mse_loss(z, y, reduction="none")),
    "mean_absolute_error": outputwise(lambda options, z, y: F.l1_loss(z, y, reduction="none")),
    "huber": outputwise(lambda options, z, y: F.huber_loss(z, y, reduction="none", delta=options.get("delta", 1.0))),
}


def loss_and_denominator(loss: Options, z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss sum of outputs z (N, *output) and targets y, and what it is to be divided by; without penalties."""
    ((kind, options),) = ((key, value) for key, value in loss.items() if key in LOSSES)
    return LOSSES[kind](options, z, y)


def penalty(loss: Options, learned: dict[str, torch.Tensor]) -> torch.Tensor:
    """l1 * sum of |w| + l2 / 2 * sum of w^2 over the weights, biases left out."""
    total = torch.tensor(0.0)
    for name, w in learned.items():
        if not name.endswith("bias"):
            total = total + loss.get("l1", 0.0) * w.abs().sum() + loss.get("l2", 0.0) / 2 * (w * w).sum()
    return total
