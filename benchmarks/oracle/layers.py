"""The layers in PyTorch, from the options of their messages (proto/lockstep/v1/model.proto) and tensors in their public shapes.

Every function takes a layer's options, its place among the tensors and x (rows first, channels last), and gives y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.oracle.tensors import Place, Tensors

Options = dict[str, Any]
Layer = dict[str, Options]


def network(layers: Sequence[Layer], tensors: Tensors, x: torch.Tensor, training: bool) -> torch.Tensor:
    """A whole network, from its input."""
    tensors.input = x
    return chain(layers, tensors, x, training)


def chain(layers: Sequence[Layer], tensors: Tensors, x: torch.Tensor, training: bool, prefix: str = "") -> torch.Tensor:
    """Layers one after the other. `prefix` is the name of what holds them, such as "2.residual.layers."."""
    for index, layer in enumerate(layers):
        ((kind, options),) = layer.items()
        x = LAYERS[kind](options, tensors.layer(f"{prefix}{index}.{kind}"), x, training)
    return x


def dense(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    weight = p("weight", x.shape[-1], options["units"])
    return F.linear(x, weight.T, p("bias", options["units"]) if options.get("bias", True) else None)


# Windows


def size_of(options: Options, name: str, default: tuple[int, int]) -> tuple[int, int]:
    size = options.get(name)
    return (size["height"], size["width"]) if size else default


def border(padding: Options, size: int, reach: int, stride: int, sides: tuple[str, str]) -> tuple[int, int]:
    """Cells before and after along one axis. "same": as many as ceil(size / stride) windows need, the odd one after."""
    if "same" in padding:
        total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
        return total // 2, total - total // 2
    explicit = padding.get("explicit", {})
    return explicit.get(sides[0], 0), explicit.get(sides[1], 0)


def borders(padding: Options, x: torch.Tensor, reach: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, right, top, bottom, as F.pad takes them, of x (N, channels, height, width)."""
    top, bottom = border(padding, x.shape[2], reach[0], stride[0], ("top", "bottom"))
    left, right = border(padding, x.shape[3], reach[1], stride[1], ("left", "right"))
    return left, right, top, bottom


def conv2d(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    kernel, stride = size_of(options, "kernel", (1, 1)), size_of(options, "stride", (1, 1))
    dilation, groups, filters = size_of(options, "dilation", (1, 1)), options.get("groups", 1), options["filters"]
    weight = p("weight", *kernel, x.shape[-1] // groups, filters).permute(3, 2, 0, 1).contiguous()
    bias = p("bias", filters) if options.get("bias", True) else None
    padding = options.get("padding", {})
    x = x.permute(0, 3, 1, 2)
    if "same" in padding and stride == (1, 1) and kernel[0] % 2 and kernel[1] % 2:
        y = F.conv2d(x, weight, bias, padding="same", dilation=dilation, groups=groups)
    else:
        reach = ((kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1)
        y = F.conv2d(F.pad(x, borders(padding, x, reach, stride)), weight, bias, stride, 0, dilation, groups)
    return y.permute(0, 2, 3, 1)


def conv1d(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    kernel, stride, dilation = options["kernel"], options.get("stride", 1), options.get("dilation", 1)
    groups, filters = options.get("groups", 1), options["filters"]
    weight = p("weight", kernel, x.shape[-1] // groups, filters).permute(2, 1, 0)
    bias = p("bias", filters) if options.get("bias", True) else None
    sides = border(options.get("padding", {}), x.shape[1], (kernel - 1) * dilation + 1, stride, ("left", "right"))
    y = F.conv1d(F.pad(x.permute(0, 2, 1), sides), weight, bias, stride, 0, dilation, groups)
    return y.permute(0, 2, 1)


def max_pool(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    window = size_of(options, "window", (1, 1))
    stride = size_of(options, "stride", window)
    x = x.permute(0, 3, 1, 2)
    padded = F.pad(x, borders(options.get("padding", {}), x, window, stride), value=-math.inf)
    return F.max_pool2d(padded, window, stride).permute(0, 2, 3, 1)


def average_pool(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    window = size_of(options, "window", (1, 1))
    stride = size_of(options, "stride", window)
    x = x.permute(0, 3, 1, 2)
    left, right, top, bottom = borders(options.get("padding", {}), x, window, stride)
    if left == right <= window[1] // 2 and top == bottom <= window[0] // 2:
        y = F.avg_pool2d(x, window, stride, (top, left), count_include_pad=False)
    else:  # PyTorch has no border that differs by side or is wider; the sum over the cells inside, and how many they are.
        sums = (F.avg_pool2d(F.pad(a, (left, right, top, bottom)), window, stride, divisor_override=1) for a in (x, x * 0 + 1))
        total, count = sums
        y = total / count.detach()
    return y.permute(0, 2, 3, 1)


def global_pool(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    positions = x.flatten(1, -2).transpose(1, 2)
    # Not amax: among equal numbers it shares the gradient, and pooling gives it to the first.
    return F.adaptive_max_pool1d(positions, 1).squeeze(-1) if options.get("reduction") == "MAX" else positions.mean(-1)


# Normalizations


def batch_norm(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    channels = x.shape[-1]
    scale, shift = p("scale", channels), p("shift", channels)
    mean, variance = p.state("running_mean", channels, -0.5, 0.5), p.state("running_variance", channels, 0.5, 2.0)
    if training:
        mean, variance = mean.clone(), variance.clone()
        p.update("running_mean", mean)
        p.update("running_variance", variance)
    flat, change, epsilon = x.reshape(-1, channels), 1 - options.get("momentum", 0.9), options.get("epsilon", 1e-5)
    return F.batch_norm(flat, mean, variance, scale, shift, training, change, epsilon).reshape(x.shape)


def layer_norm(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    width = x.shape[-1]
    return F.layer_norm(x, (width,), p("scale", width), p("shift", width), options.get("epsilon", 1e-5))


def rms_norm(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    width = x.shape[-1]
    return F.rms_norm(x, (width,), p("scale", width), options.get("epsilon", 1e-6))


# Sequences


def embedding(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    return F.embedding(x.long(), p("weight", options["vocabulary"], options["width"])) + 0 * x.unsqueeze(-1)


def positions(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    length, width = x.shape[1:]
    if options.get("form") != "SINUSOIDAL":
        return x + p("weight", length, width)
    unit, place = torch.arange(width), torch.arange(length)[:, None]
    angle = place / 10_000.0 ** ((unit - unit % 2) / width)
    return x + torch.where(unit % 2 == 0, torch.sin(angle), torch.cos(angle))


def attention(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    length, width = x.shape[1:]
    projection, projection_bias = p("projection", width, 3 * width), p("projection_bias", 3 * width)
    output, output_bias = p("output", width, width), p("output_bias", width)
    padding = p.tensors.input == options["padding_index"] if "padding_index" in options else None
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) if options.get("causal") else None
    x = x.transpose(0, 1)
    weights = (projection.T, projection_bias, None, None, False, 0.0, output.T, output_bias)
    y, _ = F.multi_head_attention_forward(
        x, x, x, width, options["heads"], *weights, key_padding_mask=padding, attn_mask=hidden, need_weights=False
    )
    return y.transpose(0, 1)


def lstm(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    inputs, units = x.shape[-1], options["units"]
    # Ours: one bias, and the gates input, forget, output, candidate; PyTorch's: input, forget, candidate, output.
    order = torch.cat([torch.arange(units) + gate * units for gate in (0, 1, 3, 2)])
    weight, bias = p("weight", inputs + units, 4 * units)[:, order].T, p("bias", 4 * units)[order]
    weights = [weight[:, :inputs], weight[:, inputs:], bias, torch.zeros_like(bias)]
    start = torch.zeros(1, len(x), units)
    y, _, _ = torch.lstm(x, (start, start), weights, True, 1, 0.0, False, False, True)
    return y if options.get("sequence") else y[:, -1]


def gru(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    # PyTorch's own variant and order of gates: reset, update, candidate, the reset gate after the product with the state.
    inputs, units = x.shape[-1], options["units"]
    input_weight, state_weight = p("input_weight", inputs, 3 * units), p("state_weight", units, 3 * units)
    weights = [input_weight.T, state_weight.T, p("input_bias", 3 * units), p("state_bias", 3 * units)]
    y, _ = torch.gru(x, torch.zeros(1, len(x), units), weights, True, 1, 0.0, False, False, True)
    return y if options.get("sequence") else y[:, -1]


# Paths


def residual(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    path = chain(options["layers"], p.tensors, x, training, f"{p.prefix}.layers.")
    return path + chain(options.get("shortcut", []), p.tensors, x, training, f"{p.prefix}.shortcut.")


def parallel(options: Options, p: Place, x: torch.Tensor, training: bool) -> torch.Tensor:
    outputs = [
        chain(branch.get("layers", []), p.tensors, x, training, f"{p.prefix}.branches.{number}.")
        for number, branch in enumerate(options["branches"])
    ]
    return torch.stack(outputs).sum(0) if options.get("join") == "ADD" else torch.cat(outputs, -1)


def elementwise(function: Callable[[Options, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A layer without tensors, the same in training and in inference."""
    return lambda options, p, x, training: function(options, x)


LAYERS: dict[str, Callable[..., torch.Tensor]] = {
    "dense": dense,
    "conv2d": conv2d,
    "conv1d": conv1d,
    "max_pool": max_pool,
    "average_pool": average_pool,
    "global_pool": global_pool,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "embedding": embedding,
    "positions": positions,
    "attention": attention,
    "lstm": lstm,
    "gru": gru,
    "residual": residual,
    "parallel": parallel,
    "flatten": elementwise(lambda options, x: x.flatten(1)),
    "reshape": elementwise(lambda options, x: x.reshape(len(x), *options["shape"])),
    "relu": elementwise(lambda options, x: F.relu(x)),
    "leaky_relu": elementwise(lambda options, x: F.leaky_relu(x, options.get("slope", 0.01))),
    "elu": elementwise(lambda options, x: F.elu(x, options.get("alpha", 1.0))),
    "silu": elementwise(lambda options, x: F.silu(x)),
    "gelu": elementwise(lambda options, x: F.gelu(x, approximate="tanh" if options.get("form") == "TANH" else "none")),
    "sigmoid": elementwise(lambda options, x: torch.sigmoid(x)),
    "tanh": elementwise(lambda options, x: torch.tanh(x)),
    # The threshold beyond which PyTorch calls it linear is moved out of reach.
    "softplus": elementwise(lambda options, x: F.softplus(x, threshold=700)),
    "softmax": elementwise(lambda options, x: F.softmax(x, -1)),
}
