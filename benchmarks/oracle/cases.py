"""The cases of single layers, losses, optimizers and schedules with their options, as descriptions."""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]


def size(height: int, width: int) -> Options:
    return {"height": height, "width": width}


def dense(units: int) -> Options:
    return {"dense": {"units": units}}


SAME: Options = {"same": {}}
RAGGED: Options = {"explicit": {"top": 1, "bottom": 0, "left": 2, "right": 1}}
EVEN: Options = {"explicit": {"top": 1, "bottom": 1, "left": 1, "right": 1}}


def conv2d(filters: int, height: int, width: int, **options: Any) -> Options:
    return {"conv2d": {"filters": filters, "kernel": size(height, width), **options}}


def conv1d(filters: int, kernel: int, **options: Any) -> Options:
    return {"conv1d": {"filters": filters, "kernel": kernel, **options}}


def pool(kind: str, height: int, width: int, **options: Any) -> Options:
    return {kind: {"window": size(height, width), **options}}


# By family: a layer, and the shape of one row of its input.
LAYERS: dict[str, dict[str, tuple[Options, tuple[int, ...]]]] = {
    "dense": {
        "dense": (dense(3), (5,)),
        "dense without bias": ({"dense": {"units": 3, "bias": False}}, (5,)),
        "dense on a sequence": (dense(4), (3, 5)),
        "dense on an image, without bias": ({"dense": {"units": 2, "bias": False}}, (2, 3, 4)),
    },
    "convolution": {
        "conv2d": (conv2d(3, 3, 2), (4, 5, 2)),
        "conv2d without bias": (conv2d(2, 2, 2, bias=False), (3, 4, 2)),
        "conv2d 1 by 1": (conv2d(4, 1, 1), (3, 3, 2)),
        "conv2d 1 by 1, stride 2": (conv2d(3, 1, 1, stride=size(2, 2)), (4, 5, 2)),
        "conv2d stride": (conv2d(3, 3, 2, stride=size(2, 3), padding={"valid": {}}), (6, 7, 2)),
        "conv2d same": (conv2d(2, 3, 4, padding=SAME), (4, 5, 2)),
        "conv2d same, stride": (conv2d(2, 3, 3, padding=SAME, stride=size(2, 2)), (5, 6, 2)),
        "conv2d same, stride above the kernel": (conv2d(2, 2, 2, padding=SAME, stride=size(3, 3)), (5, 7, 2)),
        "conv2d explicit": (conv2d(2, 3, 3, padding=RAGGED), (4, 4, 2)),
        "conv2d explicit, stride": (conv2d(2, 3, 2, padding=RAGGED, stride=size(2, 2)), (5, 4, 2)),
        "conv2d dilation": (conv2d(2, 2, 3, dilation=size(3, 2)), (5, 6, 2)),
        "conv2d dilation, same": (conv2d(2, 3, 2, dilation=size(2, 3), padding=SAME), (5, 5, 2)),
        "conv2d dilation, stride, explicit": (
            conv2d(2, 2, 2, dilation=size(2, 1), stride=size(2, 2), padding=RAGGED),
            (5, 5, 2),
        ),
        "conv2d groups": (conv2d(4, 3, 2, groups=2), (4, 4, 4)),
        "conv2d groups, same, stride": (conv2d(6, 3, 3, groups=3, padding=SAME, stride=size(2, 1)), (4, 3, 3)),
        "conv2d depthwise": (conv2d(3, 3, 3, groups=3, padding=SAME), (4, 4, 3)),
        "conv2d depthwise, stride": (conv2d(3, 3, 2, groups=3, stride=size(2, 2), padding=RAGGED), (5, 4, 3)),
        "conv2d depthwise, dilation, two filters a channel": (conv2d(4, 2, 2, groups=2, dilation=size(2, 2)), (4, 5, 2)),
        "conv1d": (conv1d(3, 3), (7, 2)),
        "conv1d without bias": (conv1d(3, 2, bias=False), (5, 2)),
        "conv1d stride, same": (conv1d(3, 4, stride=2, padding=SAME), (7, 2)),
        "conv1d dilation, explicit": (conv1d(2, 3, dilation=2, padding={"explicit": {"left": 3, "right": 1}}), (6, 3)),
        "conv1d groups": (conv1d(4, 3, groups=2), (6, 4)),
        "conv1d depthwise, causal": (conv1d(3, 3, groups=3, padding={"explicit": {"left": 2}}), (6, 3)),
    },
    "pooling": {
        "max_pool": (pool("max_pool", 2, 2), (4, 5, 2)),
        "max_pool overlapping": (pool("max_pool", 3, 2, stride=size(1, 1)), (5, 4, 2)),
        "max_pool stride above the window": (pool("max_pool", 2, 1, stride=size(3, 2)), (6, 5, 2)),
        "max_pool same": (pool("max_pool", 3, 2, stride=size(2, 2), padding=SAME), (5, 5, 2)),
        "max_pool with equal numbers": (pool("max_pool", 2, 3, stride=size(1, 2)), (4, 5, 2)),
        "max_pool same, with equal numbers": (pool("max_pool", 3, 3, stride=size(1, 1), padding=SAME), (4, 3, 2)),
        "max_pool explicit": (pool("max_pool", 2, 3, stride=size(2, 2), padding=RAGGED), (4, 5, 2)),
        "average_pool": (pool("average_pool", 2, 2), (4, 5, 2)),
        "average_pool overlapping": (pool("average_pool", 3, 2, stride=size(1, 2)), (5, 5, 2)),
        "average_pool same": (pool("average_pool", 3, 2, stride=size(2, 2), padding=SAME), (5, 5, 2)),
        "average_pool explicit on all sides": (pool("average_pool", 3, 3, stride=size(2, 2), padding=EVEN), (5, 5, 2)),
        "average_pool explicit": (pool("average_pool", 2, 3, stride=size(2, 1), padding=RAGGED), (4, 4, 2)),
        "global_pool mean": ({"global_pool": {}}, (3, 4, 2)),
        "global_pool maximum": ({"global_pool": {"reduction": "MAX"}}, (3, 4, 2)),
        "global_pool maximum with equal numbers": ({"global_pool": {"reduction": "MAX"}}, (3, 4, 2)),
        "global_pool mean of a sequence": ({"global_pool": {"reduction": "MEAN"}}, (5, 3)),
        "global_pool maximum of a sequence": ({"global_pool": {"reduction": "MAX"}}, (5, 3)),
    },
    "reshape": {
        "flatten": ({"flatten": {}}, (2, 3, 2)),
        "reshape": ({"reshape": {"shape": [2, 6]}}, (3, 4)),
    },
    "activations": {
        "relu": ({"relu": {}}, (9,)),
        "relu on an image": ({"relu": {}}, (2, 3, 2)),
        "leaky_relu": ({"leaky_relu": {}}, (9,)),
        "leaky_relu slope": ({"leaky_relu": {"slope": 0.25}}, (3, 4)),
        "elu": ({"elu": {}}, (9,)),
        "elu alpha": ({"elu": {"alpha": 0.3}}, (3, 4)),
        "silu": ({"silu": {}}, (9,)),
        "gelu": ({"gelu": {}}, (12,)),
        "gelu tanh": ({"gelu": {"form": "TANH"}}, (12,)),
        "sigmoid": ({"sigmoid": {}}, (9,)),
        "tanh": ({"tanh": {}}, (9,)),
        "softplus": ({"softplus": {}}, (9,)),
        "softmax": ({"softmax": {}}, (5,)),
        "softmax on a sequence": ({"softmax": {}}, (3, 4)),
    },
    "normalization": {
        "batch_norm": ({"batch_norm": {}}, (5,)),
        "batch_norm on an image": ({"batch_norm": {"momentum": 0.7, "epsilon": 0.01}}, (2, 3, 2)),
        "batch_norm on a sequence, no memory": ({"batch_norm": {"momentum": 0}}, (4, 3)),
        "layer_norm": ({"layer_norm": {}}, (6,)),
        "layer_norm on a sequence": ({"layer_norm": {"epsilon": 0.1}}, (3, 4)),
        "rms_norm": ({"rms_norm": {}}, (6,)),
        "rms_norm on a sequence": ({"rms_norm": {"epsilon": 0.1}}, (3, 4)),
    },
    "sequence": {
        "embedding": ({"embedding": {"vocabulary": 6, "width": 3}}, (5,)),
        "positions learned": ({"positions": {}}, (4, 3)),
        "positions sinusoidal": ({"positions": {"form": "SINUSOIDAL"}}, (5, 6)),
        "positions sinusoidal, odd width": ({"positions": {"form": "SINUSOIDAL"}}, (4, 5)),
        "attention, one head": ({"attention": {"heads": 1}}, (3, 4)),
        "attention": ({"attention": {"heads": 2}}, (4, 6)),
        "attention causal": ({"attention": {"heads": 3, "causal": True}}, (4, 6)),
    },
    "recurrent": {
        "lstm": ({"lstm": {"units": 3}}, (4, 2)),
        "lstm sequence": ({"lstm": {"units": 2, "sequence": True}}, (4, 3)),
        "gru": ({"gru": {"units": 3}}, (4, 2)),
        "gru sequence": ({"gru": {"units": 2, "sequence": True}}, (4, 3)),
    },
}

# Inputs of these lie in a wider interval, so that their tails are seen.
WIDE = frozenset({"relu", "leaky_relu", "elu", "silu", "gelu", "sigmoid", "tanh", "softplus", "softmax"})

# Inputs of these are few whole numbers, so that a window has its maximum in several places, as behind a rectifier.
TIED = frozenset({"max_pool with equal numbers", "max_pool same, with equal numbers", "global_pool maximum with equal numbers"})

CROSS_ENTROPY: Options = {"softmax_cross_entropy": {}}
WEIGHTED: Options = {"class_weights": [0.5, 2.0, 1.25, 0.75]}

# A loss, the shape of one row's outputs, and how targets are drawn: below so many whole numbers, or real numbers.
LOSSES: dict[str, tuple[Options, tuple[int, ...], int]] = {
    "cross-entropy": (CROSS_ENTROPY, (4,), 4),
    "cross-entropy, class weights": ({"softmax_cross_entropy": WEIGHTED}, (4,), 4),
    "cross-entropy, smoothing": ({"softmax_cross_entropy": {"label_smoothing": 0.2}}, (4,), 4),
    "cross-entropy, class weights and smoothing": ({"softmax_cross_entropy": {"label_smoothing": 0.1, **WEIGHTED}}, (4,), 4),
    "cross-entropy, ignored label": ({"softmax_cross_entropy": {"ignored_label": 2}}, (4,), 4),
    "cross-entropy, all options": (
        {"softmax_cross_entropy": {"label_smoothing": 0.1, "ignored_label": 1, **WEIGHTED}},
        (4,),
        4,
    ),
    "cross-entropy per position": (CROSS_ENTROPY, (3, 4), 4),
    "cross-entropy per position, ignored label": ({"softmax_cross_entropy": {"ignored_label": 0}}, (3, 4), 4),
    "cross-entropy per position, all options": (
        {"softmax_cross_entropy": {"label_smoothing": 0.3, "ignored_label": 0, **WEIGHTED}},
        (3, 4),
        4,
    ),
    "binary cross-entropy, one output": ({"binary_cross_entropy": {}}, (1,), 2),
    "binary cross-entropy": ({"binary_cross_entropy": {}}, (4,), 2),
    "binary cross-entropy, targets between": ({"binary_cross_entropy": {}}, (2, 3), 0),
    "mean squared error": ({"mean_squared_error": {}}, (3,), 0),
    "mean squared error on a sequence": ({"mean_squared_error": {}}, (2, 3), 0),
    "mean absolute error": ({"mean_absolute_error": {}}, (3,), 0),
    "mean absolute error on a sequence": ({"mean_absolute_error": {}}, (2, 3), 0),
    "huber": ({"huber": {}}, (3,), 0),
    "huber delta": ({"huber": {"delta": 0.4}}, (4,), 0),
    "huber on a sequence": ({"huber": {"delta": 2.5}}, (2, 3), 0),
}

# Ten steps each of one small net: the optimizer, and the loss with its penalties.
OPTIMIZERS: dict[str, tuple[Options, Options]] = {
    "sgd": ({"sgd": {"learning_rate": 0.3}}, CROSS_ENTROPY),
    "momentum": ({"momentum": {"learning_rate": 0.1}}, CROSS_ENTROPY),
    "momentum 0.5": ({"momentum": {"learning_rate": 0.2, "momentum": 0.5}}, CROSS_ENTROPY),
    "nesterov": ({"nesterov": {"learning_rate": 0.1}}, CROSS_ENTROPY),
    "nesterov 0.6": ({"nesterov": {"learning_rate": 0.2, "momentum": 0.6}}, CROSS_ENTROPY),
    "adagrad": ({"adagrad": {"learning_rate": 0.1}}, CROSS_ENTROPY),
    "adagrad epsilon": ({"adagrad": {"learning_rate": 0.1, "epsilon": 0.05}}, CROSS_ENTROPY),
    "rmsprop": ({"rmsprop": {"learning_rate": 0.02}}, CROSS_ENTROPY),
    "rmsprop options": ({"rmsprop": {"learning_rate": 0.05, "decay": 0.8, "epsilon": 0.01}}, CROSS_ENTROPY),
    "adam": ({"adam": {"learning_rate": 0.05}}, CROSS_ENTROPY),
    "adam options": ({"adam": {"learning_rate": 0.05, "beta1": 0.7, "beta2": 0.95, "epsilon": 0.01}}, CROSS_ENTROPY),
    "adamw": ({"adamw": {"learning_rate": 0.05}}, CROSS_ENTROPY),
    "adamw decay": (
        {"adamw": {"learning_rate": 0.1, "weight_decay": 0.5, "beta1": 0.8, "beta2": 0.9, "epsilon": 0.001}},
        CROSS_ENTROPY,
    ),
    "sgd, penalties": ({"sgd": {"learning_rate": 0.3}}, {**CROSS_ENTROPY, "l1": 0.02, "l2": 0.1}),
    "adamw, decay and penalties": ({"adamw": {"learning_rate": 0.05, "weight_decay": 0.2}}, {**CROSS_ENTROPY, "l2": 0.05}),
    "sgd, values clipped": ({"sgd": {"learning_rate": 1.0}, "clipping": {"value": 0.05}}, CROSS_ENTROPY),
    "momentum, norm clipped": ({"momentum": {"learning_rate": 0.3}, "clipping": {"global_norm": 0.2}}, CROSS_ENTROPY),
    "adam, norm clipped after penalties": (
        {"adam": {"learning_rate": 0.05}, "clipping": {"global_norm": 0.1}},
        {**CROSS_ENTROPY, "l2": 0.1},
    ),
    "lamb": ({"lamb": {"learning_rate": 0.05}}, CROSS_ENTROPY),
    "lamb options": (
        {"lamb": {"learning_rate": 0.1, "beta1": 0.7, "beta2": 0.95, "epsilon": 0.01, "weight_decay": 0.3}},
        CROSS_ENTROPY,
    ),
    "lamb, penalties and norm clipped": (
        {"lamb": {"learning_rate": 0.05}, "clipping": {"global_norm": 0.1}},
        {**CROSS_ENTROPY, "l1": 0.01, "l2": 0.1},
    ),
}

# The learning rates of four epochs of three steps.
SCHEDULES: dict[str, Options] = {
    "constant": {"constant": {}},
    "step": {"step": {"every_epochs": 1}},
    "step, every other epoch": {"step": {"every_epochs": 2, "factor": 0.3}},
    "step after a warm-up": {"step": {"every_epochs": 1, "factor": 0.5}, "warmup_steps": 4},
    "exponential": {"exponential": {"factor": 0.7}},
    "cosine": {"cosine": {}},
    "cosine floor": {"cosine": {"floor": 0.2}},
    "cosine after a warm-up": {"cosine": {"floor": 0.1}, "warmup_steps": 4},
    "polynomial": {"polynomial": {}},
    "polynomial after a warm-up": {"polynomial": {"power": 2.5}, "warmup_steps": 3},
    "warm-up alone": {"warmup_steps": 5},
}
