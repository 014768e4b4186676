"""The learning rates of PyTorch's schedulers, from the options of their messages (proto/lockstep/v1/optimization.proto)."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import lr_scheduler

Options = dict[str, Any]


def learning_rates(rate: float, schedule: Options, steps_per_epoch: int, total_steps: int) -> list[float]:
    """The rate of each step. PyTorch's one-cycle ends on the last step, ours one step later: it has no case."""
    optimizer = torch.optim.SGD([torch.zeros(1)], rate)
    scheduler = build_scheduler(optimizer, rate, schedule, steps_per_epoch, total_steps)
    rates = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def build_scheduler(
    optimizer: torch.optim.Optimizer, rate: float, schedule: Options, steps_per_epoch: int, total_steps: int
) -> lr_scheduler.LRScheduler:
    """A scheduler that is called once a step."""
    warmup = schedule.get("warmup_steps", 0)
    if warmup:
        rise = lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
        rest = {kind: options for kind, options in schedule.items() if kind != "warmup_steps"} or {"constant": {}}
        then = build_scheduler(optimizer, rate, rest, steps_per_epoch, total_steps - warmup)
        return lr_scheduler.SequentialLR(optimizer, [rise, then], [warmup])
    ((kind, options),) = schedule.items()
    if kind == "step":
        return lr_scheduler.StepLR(optimizer, options["every_epochs"] * steps_per_epoch, options.get("factor", 0.1))
    if kind == "exponential":
        return lr_scheduler.StepLR(optimizer, steps_per_epoch, options["factor"])
    if kind == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, total_steps, options.get("floor", 0.0) * rate)
    if kind == "polynomial":
        return lr_scheduler.PolynomialLR(optimizer, total_steps, options.get("power", 1.0))
    assert kind == "constant"
    return lr_scheduler.ConstantLR(optimizer, 1.0)
