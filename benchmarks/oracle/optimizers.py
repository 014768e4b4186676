"""The optimizers of PyTorch, and LAMB, from the options of their messages (proto/lockstep/v1/optimization.proto)."""

from __future__ import annotations

from typing import Any

import torch

Options = dict[str, Any]


class Lamb(torch.optim.Optimizer):
    """Algorithm 2 of You et al. 2020, phi the identity; the second group, of biases, moves as in Adam."""

    def __init__(self, groups: list[Options], rate: float, betas: tuple[float, float], epsilon: float, decay: float) -> None:
        super().__init__(groups, {"lr": rate, "betas": betas, "eps": epsilon, "weight_decay": decay})
        self.time = 0

    @torch.no_grad()
    def step(self) -> None:
        self.time += 1
        for number, group in enumerate(self.param_groups):
            first, second = group["betas"]
            for w in group["params"]:
                state = self.state.setdefault(w, {})
                m = state["m"] = first * state.get("m", 0.0) + (1 - first) * w.grad
                v = state["v"] = second * state.get("v", 0.0) + (1 - second) * w.grad**2
                direction = m / (1 - first**self.time) / ((v / (1 - second**self.time)).sqrt() + group["eps"])
                direction += group["weight_decay"] * w
                trust = w.norm() / direction.norm() if number == 0 else 1.0
                w -= group["lr"] * trust * direction


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
    groups: list[dict[str, Any]] = [
        {"params": [w for name, w in learned.items() if not name.endswith("bias")]},
        {"params": [w for name, w in learned.items() if name.endswith("bias")], "weight_decay": 0.0},
    ]
    decay = options.get("weight_decay", 0.01)
    if kind == "adamw":
        return torch.optim.AdamW(groups, rate, betas, options.get("epsilon", 1e-8), decay)
    assert kind == "lamb"
    return Lamb(groups, rate, betas, options.get("epsilon", 1e-6), decay)


def clip(clipping: Options, learned: dict[str, torch.Tensor]) -> None:
    """Bounds the gradients in place: each element, or the norm of all."""
    if "value" in clipping:
        torch.nn.utils.clip_grad_value_(learned.values(), clipping["value"])
    if "global_norm" in clipping:
        # clip_grad_norm_ adds 1e-6 to the norm; the contract does not.
        norm = torch.nn.utils.get_total_norm([w.grad for w in learned.values()])
        for w in learned.values():
            w.grad.mul_(min(1.0, clipping["global_norm"] / norm))
