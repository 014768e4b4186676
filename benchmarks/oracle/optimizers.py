"""The optimizers of PyTorch, from the options of their messages (proto/lockstep/v1/optimization.proto)."""

from __future__ import annotations

from typing import Any

import torch

Options = dict[str, Any]


def build_optimizer(optimizer: Options, learned: dict[str, torch.Tensor]) -> torch.optim.Optimizer:
    """PyTorch's optimizer with the defaults of the contract; decay on the weights, not on biases."""
    ((kind, options),) = ((key, value) for key, value in optimizer.items() if key != "clipping")
    rate, tensors = options["learning_rate"], list(learned.values())
    if kind == "sgd":
        return torch.optim.SGD(tensors, rate)
    if kind in ("momentum", "nesterov"):
        return torch.optim.SGD(tensors, rate, momentum=options.get("momentum", 0.9), nesterov=kind == "nesterov")
    if kind == "adagrad":
        return torch.optim.Adagrad(tensors, rate, eps=options.get("epsilon", 1e-10))
    if kind == "rmsprop":
        return torch.optim.RMSprop(tensors, rate, alpha=options.get("decay", 0.99), eps=options.get("epsilon", 1e-8))
    betas = (options.get("beta1", 0.9), options.get("beta2", 0.999))
    if kind == "adam":
        return torch.optim.Adam(tensors, rate, betas, options.get("epsilon", 1e-8))
    assert kind == "adamw"
    groups = [
        {"params": [w for name, w in learned.items() if not name.endswith("bias")]},
        {"params": [w for name, w in learned.items() if name.endswith("bias")], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, rate, betas, options.get("epsilon", 1e-8), options.get("weight_decay", 0.01))


def clip(clipping: Options, learned: dict[str, torch.Tensor]) -> None:
    """Bounds the gradients in place: each element, or the norm of all."""
    if "value" in clipping:
        torch.nn.utils.clip_grad_value_(learned.values(), clipping["value"])
    if "global_norm" in clipping:
        # clip_grad_norm_ adds 1e-6 to the norm; the contract does not.
        norm = torch.nn.utils.get_total_norm([w.grad for w in learned.values()])
        for w in learned.values():
            w.grad.mul_(min(1.0, clipping["global_norm"] / norm))
