"""Checkpoints altered by one bit, their manifests rewritten to match: whole by every hash that stands beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from coordinator.checkpoint_folder import record_of, verify_folder
from lockstep.contract.manifest import MANIFEST_FILE, MODEL_FILE, Manifest
from lockstep.contract.weights import weights_sha256_of_file


def checkpoint_folder(files_folder: Path, job_id: str, step: int) -> Path:
    """The folder of a checkpoint."""
    (found,) = (files_folder / "checkpoints" / job_id).glob(f"{step}-*")
    return found


def alter(folder: Path, name: str = MODEL_FILE) -> Manifest:
    """Flips the lowest bit of a file's last number; gives the manifest as it now stands."""
    path = folder / name
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    manifest = Manifest.from_json((folder / MANIFEST_FILE).read_bytes())
    manifest = replace(
        manifest,
        files={**manifest.files, name: record_of(bytes(content))},
        weights_sha256=weights_sha256_of_file(folder / MODEL_FILE),
    )
    (folder / MANIFEST_FILE).write_text(manifest.to_json())
    assert verify_folder(folder) == manifest
    return manifest
