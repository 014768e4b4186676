"""Shapes of embedding, positions and attention."""

from __future__ import annotations

from typing import Any

from worker.limits import MAX_ACTIVATION
from worker.nn.shapes.shape import ZERO, Initial, Outcome, Refusals, Role, Rule, Shape, TensorShape
from worker.specs import AttentionRecord, EmbeddingRecord, PositionsRecord

# Whole numbers up to it are exact in float32.
MAX_VOCABULARY = 1 << 24
MAX_WIDTH = 1 << 16
MAX_HEADS = 256

_SEQUENCE = "it takes rows of shape (length, width), as embedding gives them"


def _embedding(record: EmbeddingRecord, shape: Shape, refusals: Refusals) -> Outcome:
    for name, value, most in (("vocabulary", record.vocabulary, MAX_VOCABULARY), ("width", record.width, MAX_WIDTH)):
        if not 1 <= value <= most:
            refusals.field(name, value, f"it must be at least 1 and at most {most}")
    initial = Initial("lecun_normal", max(1, record.width))
    return Outcome((*shape, record.width), {"weight": TensorShape.plain((record.vocabulary, record.width), initial)})


def _positions(record: PositionsRecord, shape: Shape, refusals: Refusals) -> Outcome:
    if len(shape) != 2:
        refusals.shape(shape, _SEQUENCE)
        return Outcome(shape)
    if not record.learned:
        return Outcome(shape)
    return Outcome(shape, {"weight": TensorShape.plain(shape, Initial("lecun_normal", max(1, shape[1])), Role.OFFSET)})


def _attention(record: AttentionRecord, shape: Shape, refusals: Refusals) -> Outcome:
    if not 1 <= record.heads <= MAX_HEADS:
        refusals.field("heads", record.heads, f"it must be at least 1 and at most {MAX_HEADS}")
        return Outcome(shape)
    if len(shape) != 2:
        refusals.shape(shape, _SEQUENCE)
        return Outcome(shape)
    length, width = shape
    if width % record.heads:
        refusals.field("heads", record.heads, f"it must divide the width of the rows, {width}")
    scores = record.heads * length * length
    if scores > MAX_ACTIVATION:
        remedy = f"heads times length squared may be at most {MAX_ACTIVATION}, and it is {scores}"
        refusals.field("heads", record.heads, remedy, "MODEL_TOO_LARGE")
    # Queries, keys and values are three square matrices side by side, each drawn for its own width.
    initial = Initial("glorot_uniform", max(1, width), max(1, width))
    tensors = {
        "projection": TensorShape.plain((width, 3 * width), initial),
        "projection_bias": TensorShape.plain((3 * width,), ZERO, Role.OFFSET),
        "output": TensorShape.plain((width, width), initial),
        "output_bias": TensorShape.plain((width,), ZERO, Role.OFFSET),
    }
    # Queries, keys, values and the context, twice, and the scores.
    return Outcome(shape, tensors, kept=8 * length * width + scores)


RULES: dict[type[Any], Rule] = {EmbeddingRecord: _embedding, PositionsRecord: _positions, AttentionRecord: _attention}
