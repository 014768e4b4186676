"""decode(encode(manifest)) == manifest, numbers that are not finite included; what is damaged is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from lockstep.contract.errors import UserError
from lockstep.contract.manifest import Manifest

MANIFEST = Manifest(
    job_id="digits-mlp-7f3a",
    run_number=2,
    step=240,
    epoch=20,
    arithmetic_digest="a" * 64,
    arithmetic_version=1,
    dataset_digest="d" * 64,
    fingerprint="f" * 64,
    weights_sha256="b" * 64,
    files={"model.safetensors": {"size_bytes": 8, "sha256": "c" * 64}},
    spec={"name": "NaN"},
    input_shape=[64],
    create_time="2026-11-25T00:00:00Z",
    applied_rows=30_000,
    preprocessing={"standardize": {"mean": [0.5], "scale": [1.0]}},
    controller={"best": math.inf},
    loss=0.25,
    validation_loss=math.inf,
    class_names=["NaN", "Infinity"],
)


def test_what_was_written_is_read() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_numbers_that_are_not_finite_stand_as_words() -> None:
    text = replace(MANIFEST, loss=math.nan).to_json()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] == "NaN"
    loss = Manifest.from_json(text).loss
    assert loss is not None and math.isnan(loss)
    assert Manifest.from_json(text).class_names == ["NaN", "Infinity"]


def unchecked(**changed: object) -> str:
    """The manifest with other values, as a version wrote it that knew no checksum."""
    values = {**json.loads(MANIFEST.to_json()), **changed}
    del values["manifest_sha256"]
    return json.dumps(values)


def test_a_key_of_a_newer_version_is_passed_over() -> None:
    assert Manifest.from_json(unchecked(new=1)) == MANIFEST


def test_a_manifest_without_a_checksum_is_read() -> None:
    assert Manifest.from_json(unchecked()) == MANIFEST


def test_no_flipped_bit_is_believed() -> None:
    whole = MANIFEST.to_json().encode()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            read = Manifest.from_json(bytes(flipped))
        except UserError:
            continue
        assert read == MANIFEST  # white space, or the name of the checksum


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "[" * 100_000, unchecked(step="240"), '{"format": 1}'],
)
def test_what_is_damaged_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Manifest.from_json(text)


def test_another_format_is_named() -> None:
    with pytest.raises(UserError, match=r"manifest\.json: format: got 2; this version of Lockstep reads format 1"):
        Manifest.from_json('{"format": 2}')
