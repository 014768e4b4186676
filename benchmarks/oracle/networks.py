"""The cases of whole networks, as descriptions."""

from __future__ import annotations

import itertools

from benchmarks.oracle.cases import CROSS_ENTROPY, EVEN, SAME, WEIGHTED, Options, conv1d, conv2d, dense, pool, size

RELU: Options = {"relu": {}}
ACTIVATIONS = ("leaky_relu", "elu", "silu", "gelu", "sigmoid", "tanh", "softplus", "softmax")

# Layers, one row's shape, a loss, and the rows of each shard.
NETWORKS: dict[str, tuple[list[Options], tuple[int, ...], Options, tuple[int, ...]]] = {
    "perceptron": ([dense(6), RELU, dense(5), RELU, dense(4)], (5,), CROSS_ENTROPY, (2, 2, 2)),
    "perceptron on an image, tanh": ([{"flatten": {}}, dense(4), {"tanh": {}}, dense(2)], (2, 3, 1), {"huber": {}}, (3, 3)),
    "every activation": (
        [
            *itertools.chain.from_iterable((dense(3), {kind: {}}) for kind in ACTIVATIONS),
            dense(2),
        ],
        (4,),
        {"mean_squared_error": {}},
        (2, 2),
    ),
    "convolutions": (
        [
            conv2d(3, 3, 3, padding=SAME),
            {"batch_norm": {}},
            RELU,
            pool("max_pool", 2, 2),
            conv2d(4, 2, 2),
            RELU,
            {"global_pool": {}},
            dense(3),
        ],
        (5, 4, 2),
        {"softmax_cross_entropy": {"label_smoothing": 0.1}},
        (3, 3),
    ),
    "separable convolution": (
        [
            conv2d(2, 3, 3, groups=2, padding=SAME, bias=False),
            conv2d(4, 1, 1, bias=False),
            {"batch_norm": {"momentum": 0.5}},
            {"silu": {}},
            pool("average_pool", 2, 2, padding=SAME),
            {"flatten": {}},
            dense(2),
        ],
        (3, 4, 2),
        {"mean_absolute_error": {}},
        (2, 2, 2),
    ),
    "residual blocks": (
        [
            conv2d(2, 3, 3, padding=SAME),
            {"residual": {"layers": [conv2d(2, 3, 3, padding=SAME), {"batch_norm": {}}, RELU, conv2d(2, 1, 1)]}},
            RELU,
            {
                "residual": {
                    "layers": [conv2d(3, 3, 3, padding=SAME, stride=size(2, 2)), {"batch_norm": {}}],
                    "shortcut": [conv2d(3, 1, 1, stride=size(2, 2), bias=False)],
                }
            },
            RELU,
            {"global_pool": {"reduction": "MAX"}},
            dense(3),
        ],
        (4, 4, 1),
        CROSS_ENTROPY,
        (2, 2),
    ),
    "paths of two layouts, which change the shape": (
        [
            {
                "residual": {
                    "layers": [conv2d(3, 2, 2, padding=SAME), {"softmax": {}}],
                    "shortcut": [conv2d(3, 1, 1)],
                }
            },
            {
                "parallel": {
                    "join": "ADD",
                    "branches": [{"layers": [conv2d(2, 1, 1)]}, {"layers": [conv2d(2, 1, 2, padding=SAME), {"softmax": {}}]}],
                }
            },
            {"global_pool": {}},
            dense(2),
        ],
        (3, 3, 1),
        {"mean_squared_error": {}},
        (2, 2),
    ),
    "labels for each position, out of a recurrence": (
        [{"gru": {"units": 3, "sequence": True}}],
        (4, 2),
        {"softmax_cross_entropy": {"label_smoothing": 0.1, "ignored_label": 1}},
        (2, 2),
    ),
    "parallel, concatenated": (
        [
            dense(4),
            {"parallel": {"branches": [{"layers": [dense(3), RELU]}, {}, {"layers": [RELU, dense(2)]}]}},
            dense(3),
        ],
        (5,),
        CROSS_ENTROPY,
        (3, 3),
    ),
    "parallel, added": (
        [
            {
                "parallel": {
                    "join": "ADD",
                    "branches": [
                        {"layers": [conv2d(3, 1, 1)]},
                        {"layers": [conv2d(3, 3, 3, padding=SAME), {"tanh": {}}]},
                        {"layers": [pool("max_pool", 3, 3, stride=size(1, 1), padding=EVEN), conv2d(3, 1, 1)]},
                    ],
                }
            },
            {"global_pool": {}},
            dense(2),
        ],
        (3, 4, 2),
        {"binary_cross_entropy": {}},
        (2, 2),
    ),
    "transformer block": (
        [
            {"embedding": {"vocabulary": 5, "width": 4}},
            {"positions": {"form": "SINUSOIDAL"}},
            {"residual": {"layers": [{"layer_norm": {}}, {"attention": {"heads": 2, "causal": True}}]}},
            {"residual": {"layers": [{"rms_norm": {}}, dense(6), {"gelu": {"form": "TANH"}}, dense(4)]}},
            {"layer_norm": {}},
            dense(4),
        ],
        (4,),
        {"softmax_cross_entropy": {"ignored_label": 0}},
        (2, 2),
    ),
    "attention over learned positions": (
        [
            {"embedding": {"vocabulary": 6, "width": 4}},
            {"positions": {}},
            {"attention": {"heads": 2}},
            {"flatten": {}},
            dense(1),
        ],
        (3,),
        {"binary_cross_entropy": {}},
        (2, 2),
    ),
    "attention that does not see padding": (
        [
            {"embedding": {"vocabulary": 4, "width": 4}},
            {"residual": {"layers": [{"attention": {"heads": 2, "padding_index": 3}}]}},
            {"attention": {"heads": 1, "padding_index": 3, "causal": True}},
            dense(4),
        ],
        (5,),
        {"softmax_cross_entropy": {"ignored_label": 3}},
        (2, 2),
    ),
    "recurrent": (
        [
            {"lstm": {"units": 3, "sequence": True}},
            {"gru": {"units": 3, "sequence": True}},
            {"lstm": {"units": 2}},
            dense(4),
        ],
        (4, 2),
        {"softmax_cross_entropy": WEIGHTED},
        (2, 2),
    ),
    "recurrent over words": (
        [{"embedding": {"vocabulary": 5, "width": 2}}, {"gru": {"units": 3}}, dense(2)],
        (4,),
        {"mean_squared_error": {}},
        (2, 2),
    ),
    "conv1d, reshaped": (
        [{"reshape": {"shape": [6, 2]}}, conv1d(3, 3, padding=SAME), RELU, conv1d(2, 2, stride=2), {"flatten": {}}, dense(3)],
        (12,),
        CROSS_ENTROPY,
        (2, 2),
    ),
}
