"""decode(encode(manifest)) == manifest, numbers that are not finite included; what is damaged is refused."""

from __future__ import annotations

import json
import math
from contextlib import suppress
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


def altered(**values: object) -> str:
    """The manifest with other values, and without the hash of its own."""
    written = json.loads(MANIFEST.to_json())
    del written["manifest_sha256"]
    return json.dumps({**written, **values})


def test_what_was_written_is_read() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_numbers_that_are_not_finite_stand_as_words() -> None:
    text = replace(MANIFEST, loss=math.nan).to_json()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] == "NaN"
    loss = Manifest.from_json(text).loss
    assert loss is not None and math.isnan(loss)
    assert Manifest.from_json(text).class_names == ["NaN", "Infinity"]


def test_a_key_of_a_newer_version_is_passed_over() -> None:
    assert Manifest.from_json(altered(new=1)) == MANIFEST


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "[" * 100_000, altered(step="240"), '{"format": 1}'],
)
def test_what_is_damaged_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Manifest.from_json(text)


def test_another_format_is_named() -> None:
    with pytest.raises(UserError, match=r"manifest\.json: format: got 2; this version of Lockstep reads format 1"):
        Manifest.from_json('{"format": 2}')


def test_a_flipped_bit_is_found_wherever_it_is() -> None:
    """Also where it leaves sound JSON: in a number of the controller, or in the name of a key."""
    content = bytearray(MANIFEST.to_json().encode())
    for place in range(len(content)):
        content[place] ^= 1
        with suppress(UserError):
            assert Manifest.from_json(bytes(content)) == MANIFEST  # between values, or in the name of the hash
        content[place] ^= 1
