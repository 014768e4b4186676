"""Initializers: mean, variance, bounds, orthonormality; the same stream gives the same bits."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict

from lockstep.contract.errors import UserError
from lockstep.v1.model_pb2 import Initializer as Message
from lockstep.v1.model_pb2 import ModelSpec
from worker.nn.initializers import INITIALIZERS
from worker.nn.shapes import Initial
from worker.randomness import Floats, Purpose, Stream
from worker.specs import DenseRecord, InitializerRecord, architecture

VALUES = {"orthogonal": 1.5, "truncated_normal": 0.3}


def draw(kind: str, shape: tuple[int, ...], *, value: float = 0.0, seed: int = 7, layer: int = 2) -> Floats:
    stream = Stream(seed, Purpose.INITIAL_WEIGHTS, layer=layer)
    return INITIALIZERS[kind](stream, Initial(kind, math.prod(shape[:-1]), shape[-1], value), shape)


@pytest.mark.parametrize("kind", sorted(INITIALIZERS))
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 5), (2, 3, 4, 5), (300, 70)])
def test_draws_are_a_function_of_the_stream(kind: str, shape: tuple[int, ...]) -> None:
    a, b = (draw(kind, shape, value=VALUES.get(kind, 0.0)) for _ in range(2))
    assert a.shape == shape
    assert a.dtype == np.float32
    assert a.flags.c_contiguous
    assert a.tobytes() == b.tobytes()
    if kind not in ("zeros", "constant") and a.size > 1:
        assert a.tobytes() != draw(kind, shape, value=VALUES.get(kind, 0.0), seed=8).tobytes()
        assert a.tobytes() != draw(kind, shape, value=VALUES.get(kind, 0.0), layer=3).tobytes()


def test_zeros_and_constants() -> None:
    assert not draw("zeros", (4, 5)).any()
    assert (draw("constant", (4, 5), value=2.5) == 2.5).all()


@pytest.mark.parametrize(("kind", "variance"), [("glorot_uniform", 2 / 900), ("he_normal", 2 / 600), ("lecun_normal", 1 / 600)])
def test_mean_and_variance(kind: str, variance: float) -> None:
    w = draw(kind, (600, 300)).astype(np.float64)
    assert abs(w.mean()) < 4 * math.sqrt(variance / w.size)
    assert w.var() == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("gain", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("shape", [(40, 40), (90, 20), (20, 90), (3, 3, 8, 16), (2, 2, 4, 64), (1, 7), (7, 1)])
def test_orthogonal_is_orthonormal_times_the_gain(shape: tuple[int, ...], gain: float) -> None:
    w = draw("orthogonal", shape, value=gain).astype(np.float64).reshape(-1, shape[-1]) / gain
    product = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    assert float(np.abs(product - np.eye(len(product))).max()) < 1e-6


def test_orthogonal_has_a_triangle_with_positive_diagonal() -> None:
    # Q^T A = R for the A that the same stream gives: lecun_normal of one input is A.
    a = INITIALIZERS["lecun_normal"](Stream(7, Purpose.INITIAL_WEIGHTS, layer=2), Initial("lecun_normal"), (30, 30))
    r = draw("orthogonal", (30, 30), value=1.0).astype(np.float64).T @ a.astype(np.float64)
    assert float(np.abs(np.tril(r, -1)).max()) < 1e-5
    assert (np.diagonal(r) > 0).all()


def test_orthogonal_has_no_preferred_sign() -> None:
    signs = [float(draw("orthogonal", (3, 3), value=1.0, seed=seed)[0, 0]) for seed in range(400)]
    # One entry of an evenly drawn 3 by 3 orthogonal matrix has mean 0 and variance 1 / 3.
    assert abs(np.mean(signs)) < 4 * math.sqrt(1 / 3 / 400)
    assert np.var(signs) == pytest.approx(1 / 3, rel=0.2)


def test_truncated_normal_mean_variance_and_bounds() -> None:
    w = draw("truncated_normal", (700, 300), value=0.02).astype(np.float64)
    assert float(np.abs(w).max()) <= 2 * np.float32(0.02)
    assert float(np.abs(w).max()) > 1.99 * 0.02
    # The variance of a standard normal cut off at 2: 1 - 2 * 2 phi(2) / (2 Phi(2) - 1).
    cut = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    assert abs(w.mean()) < 4 * 0.02 * math.sqrt(cut / w.size)
    assert w.var() == pytest.approx(0.02**2 * cut, rel=0.02)


def test_truncated_normal_keeps_what_lies_within() -> None:
    z = INITIALIZERS["lecun_normal"](Stream(7, Purpose.INITIAL_WEIGHTS, layer=2), Initial("lecun_normal"), (50, 50))
    w = draw("truncated_normal", (50, 50), value=1.0)
    within = np.abs(z) <= 2
    assert (w[within] == z[within]).all()
    assert (w[~within] != z[~within]).all()


def test_truncated_normal_is_scaled() -> None:
    one, half = (draw("truncated_normal", (50, 50), value=value) for value in (1.0, 0.5))
    assert (one * np.float32(0.5) == half).all()


RECORDED = {
    "glorot_uniform": "eab6fd756c1de493da3511650ce507249e07f2bff10c295cdfdbdd185302cb0a",
    "he_normal": "e12a00b84675513ada6ff33243a6c627abc0875941bd58a92cb5b3bbf583bfef",
    "lecun_normal": "abc6c29ad4b7a2a5a7cc71e4289a9e1f67ad337d960d3d13febeae2f18499268",
}


@pytest.mark.parametrize("kind", sorted(RECORDED))
def test_recorded_draws_stay(kind: str) -> None:
    assert hashlib.sha256(draw(kind, (97, 101)).tobytes()).hexdigest() == RECORDED[kind]


def read(**initializer: Any) -> InitializerRecord:
    model = ModelSpec()
    model.layers.add().dense.units = 4
    model.layers[0].dense.initializer.CopyFrom(ParseDict(initializer, Message()))
    (record,) = architecture(model, (3,)).layers
    assert isinstance(record, DenseRecord)
    return record.initializer


def test_every_kind_of_the_contract_is_read_and_built() -> None:
    for field in Message.DESCRIPTOR.oneofs_by_name["kind"].fields:
        record = read(**{field.name: {}})
        assert record.kind == field.name
        assert draw(record.kind, (6, 4), value=record.value).shape == (6, 4)


def test_values_and_their_defaults() -> None:
    assert read(orthogonal={}) == InitializerRecord("orthogonal", 1.0)
    assert read(orthogonal={"gain": 2.0}) == InitializerRecord("orthogonal", 2.0)
    assert read(truncated_normal={}) == InitializerRecord("truncated_normal", 0.02)
    assert read(truncated_normal={"stddev": 0.5}) == InitializerRecord("truncated_normal", 0.5)
    assert read(he_normal={}) == InitializerRecord("he_normal")


@pytest.mark.parametrize(("kind", "field"), [("orthogonal", "gain"), ("truncated_normal", "stddev")])
@pytest.mark.parametrize("value", [0.0, -1.0, "NaN", "Infinity"])
def test_a_wrong_value_is_refused(kind: str, field: str, value: object) -> None:
    with pytest.raises(UserError) as raised:
        read(**{kind: {field: value}})
    (violation,) = raised.value.violations
    assert (violation.place, violation.reason) == (f"model.layers[0].dense.initializer.{kind}.{field}", "INVALID_FIELD")
