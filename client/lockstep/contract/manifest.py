"""The manifest of a checkpoint: what its files are, what they came from, and what is needed to use or verify them."""

from __future__ import annotations

import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypedDict, final

from lockstep.contract.errors import UserError

FORMAT = 1

# What helps against damage, on the way or on the server.
PULL_AGAIN = (
    "pull again, and if it stays so the checkpoint itself is damaged: take another with --step (`lockstep show JOB` lists them)"
)

# The files of a checkpoint.
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"

# A manifest holds names and settings, never weights.
MAX_MANIFEST_BYTES = 16 * 1024 * 1024

# The key of the manifest's own checksum. One without it, as older versions wrote, is read unchecked.
_CHECKSUM = "manifest_sha256"

# Classes whose metrics a result carries to people; a manifest has the counts of all.
CLASSES_REPORTED = 1000

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class FileRecord(TypedDict):
    """Size and SHA-256, in hex, of one file of a checkpoint."""

    size_bytes: int
    sha256: str


@final
@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What stands in manifest.json beside the files of a checkpoint. None where a value is not known.

    `spec` is the job's spec as protobuf JSON with proto field names; `preprocessing` is {} or
    {"standardize": {"mean": [...], "scale": [...]}}; `controller` is what remembers evaluations.
    `validation_metrics` are the fields of ValidationMetrics that have a value; `validation_classes` is {} or
    {"support": [...], "predicted": [...], "correct": [...]}, a count per class.
    """

    job_id: str
    run_number: int
    step: int
    epoch: int
    arithmetic_digest: str
    arithmetic_version: int
    dataset_digest: str
    fingerprint: str
    weights_sha256: str
    files: dict[str, FileRecord]
    spec: dict[str, Any]
    input_shape: list[int]
    create_time: str
    applied_rows: int = 0
    preprocessing: dict[str, Any] = field(default_factory=dict)
    controller: dict[str, Any] = field(default_factory=dict)
    loss: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    validation_metrics: dict[str, float] = field(default_factory=dict)
    validation_classes: dict[str, list[int]] = field(default_factory=dict)
    best_validation_loss: float | None = None
    best_step: int | None = None
    class_names: list[str] = field(default_factory=list)
    input_names: list[str] = field(default_factory=list)
    format: int = FORMAT

    def to_json(self) -> str:
        """Indented JSON, sorted keys. A number that is not finite stands as "NaN", "Infinity" or "-Infinity"."""
        values = _encoded({part.name: getattr(self, part.name) for part in fields(self)})
        values[_CHECKSUM] = _checksum(values)
        return json.dumps(values, sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, place: str = MANIFEST_FILE) -> Manifest:
        """Reads what `to_json` wrote. Raises UserError where it is damaged or of a format this version does not know."""
        if len(text) > MAX_MANIFEST_BYTES:
            raise _damaged(place, f"it has {len(text):,} bytes, above {MAX_MANIFEST_BYTES:,}")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _damaged(place, f"it is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise _damaged(place, "it is not a JSON object")
        if values.get("format") != FORMAT:
            remedy = f"this version of Lockstep reads format {FORMAT}; use the version that wrote it, or a newer one"
            raise UserError.of(f"{place}: format", values.get("format"), remedy, "MANIFEST_FORMAT")
        checksum = values.pop(_CHECKSUM, None)
        if checksum is not None and checksum != _checksum(values):
            raise _damaged(place, f"its content is not that of its {_CHECKSUM}")
        wanted = _wanted()
        # Keys that a newer version added are passed over: they do not change what the known ones mean.
        known = [part.name for part in fields(cls) if part.name in values]
        read = {name: _decoded(name, wanted[name], values[name], place) for name in known}
        try:
            return cls(**read)
        except TypeError as error:
            raise _damaged(place, str(error).removeprefix("Manifest.__init__() ")) from error


def _checksum(values: dict[str, Any]) -> str:
    """SHA-256, in hex, of all else in the manifest: its JSON with sorted keys and no white space."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@cache
def _wanted() -> dict[str, Any]:
    """The type of each field."""
    return typing.get_type_hints(Manifest)


def _encoded(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _encoded(item) for key, item in value.items()}
    return [_encoded(item) for item in value] if isinstance(value, list | tuple) else value


def _decoded(name: str, wanted: Any, value: Any, place: str) -> Any:
    kinds = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if float in kinds and not isinstance(value, bool):
        if isinstance(value, str) and value in NON_FINITE:
            return NON_FINITE[value]
        value = float(value) if isinstance(value, int) else value
    plain = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        raise _damaged(place, f"{name} is {json.dumps(value)[:80]}")
    # Names may well read "NaN"; only in what holds numbers does the word stand for one.
    return _numbers(value) if name in ("controller", "preprocessing") else value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def _damaged(place: str, what: str) -> UserError:
    remedy = f"{what}: the file is damaged; {PULL_AGAIN}"
    return UserError.of(place, "", remedy, "MANIFEST_DAMAGED")
