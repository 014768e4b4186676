"""The checkpoints of a job: finding the newest whole one, committing the next, keeping the last few and the best.

Single writer of files/checkpoints/JOB: the coordinator that holds the job's lock. Nothing else deletes there, except the
agent, under the same lock, once the job itself was deleted.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import final

from coordinator import limits
from coordinator.checkpoint_folder import (
    CheckpointBroken,
    Damaged,
    read_manifest,
    remove_folder,
    set_aside,
    settle_folders,
    verify_folder,
    write_folder,
)
from coordinator.metric_messages import class_messages, metrics_message
from lockstep.contract.errors import UserError
from lockstep.contract.manifest import MODEL_FILE, FileRecord, Manifest
from lockstep.contract.weights import weights_sha256_of_file
from lockstep.v1 import training_job_pb2 as job

_NAME = re.compile(r"([0-9]{1,20})-[0-9a-f]{12}")


def folder_name(step: int, arithmetic_digest: str) -> str:
    """The name of a checkpoint's folder: STEP-DIGEST12."""
    return f"{step}-{arithmetic_digest[:12]}"


@final
class _Foreign(Exception):
    """A whole checkpoint that is not this job's, or not of its arithmetic."""


@final
@dataclass(frozen=True, slots=True)
class Committed:
    """A checkpoint on disk."""

    folder: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """The step it was taken after."""
        return self.manifest.step

    @property
    def size_bytes(self) -> int:
        """Size of its files."""
        return sum(record["size_bytes"] for record in self.manifest.files.values())


@final
class Checkpoints:
    """What stands in one job's folder, of one arithmetic. `acknowledged` are the weights_sha256 that were reported, by step."""

    def __init__(
        self,
        folder: Path,
        job_id: str,
        arithmetic_digest: str,
        dataset_digest: str,
        keep: int,
        acknowledged: Mapping[int, str] | None = None,
    ) -> None:
        self.folder = folder
        self._job_id = job_id
        self._arithmetic_digest = arithmetic_digest
        self._dataset_digest = dataset_digest
        self._keep = keep
        self._acknowledged = acknowledged or {}
        self._committed: dict[int, Committed] = {}

    def recover(self) -> tuple[Committed | None, list[str]]:
        """The newest checkpoint that verifies, bears the job's digests and is what was acknowledged, and a sentence for each
        newer one that is not.

        Clears away what a death in the midst of writing or removing left, and sets damaged ones aside; the job's lock must be
        held. Raises CheckpointBroken.
        """
        settle_folders(self.folder, self.folder.parent)
        found: Committed | None = None
        passed_over: list[str] = []
        steps: list[tuple[int, Path]] = []
        for entry in sorted(self.folder.iterdir()):
            if entry.is_dir() and entry.suffix in (".tmp", ".old"):
                shutil.rmtree(entry)
            elif entry.is_dir() and (matched := _NAME.fullmatch(entry.name)):
                steps.append((int(matched[1]), entry))
        for step, entry in sorted(steps, reverse=True):
            try:
                # Older ones are verified when they are needed; till then their manifests do.
                manifest = read_manifest(entry) if found else verify_folder(entry)
                self._check(manifest, step, entry)
                self.check_acknowledged(manifest, entry)
            except (Damaged, _Foreign) as wrong:
                said = str(wrong)
                if isinstance(wrong, Damaged):
                    said += f"; it was set aside as {set_aside(entry).name}"
                if found is None:
                    passed_over.append(said)
                continue
            self._committed[step] = Committed(entry, manifest)
            found = found or self._committed[step]
        self._prune_damaged()
        return found, passed_over

    def steps(self) -> list[int]:
        """The steps of the job's arithmetic whose folders stand there, whole or not, ascending. Needs no lock."""
        found = [int(matched[1]) for entry in self.folder.glob("*-*") if (matched := _NAME.fullmatch(entry.name))]
        return sorted({step for step in found if (self.folder / folder_name(step, self._arithmetic_digest)).is_dir()})

    def read(self, step: int) -> Committed:
        """The checkpoint of a step, all of it read back; nothing is changed, and no lock needed. Raises Damaged."""
        folder = self.folder / folder_name(step, self._arithmetic_digest)
        manifest = verify_folder(folder)
        try:
            self._check(manifest, step, folder)
            held = weights_sha256_of_file(folder / MODEL_FILE)
        except (_Foreign, UserError, OSError) as wrong:
            raise Damaged(str(wrong)) from wrong
        if held != manifest.weights_sha256:
            raise Damaged(f"{folder / MODEL_FILE} has weights_sha256 {held}, and its manifest says {manifest.weights_sha256}")
        return Committed(folder, manifest)

    def check_acknowledged(self, manifest: Manifest, entry: Path) -> None:
        """Raises Damaged where the checkpoint has other weights than were acknowledged, however well its files agree."""
        known = self._acknowledged.get(manifest.step, "")
        if known not in ("", manifest.weights_sha256):
            raise Damaged(f"{entry} was altered: it has weights_sha256 {manifest.weights_sha256}, and the job reported {known}")

    def _check(self, manifest: Manifest, step: int, entry: Path) -> None:
        if manifest.step != step:
            raise Damaged(f"{entry} holds step {manifest.step} of job {manifest.job_id}")
        if manifest.job_id != self._job_id:
            raise _Foreign(f"{entry} is of job {manifest.job_id}")
        if (manifest.arithmetic_digest, manifest.dataset_digest) != (self._arithmetic_digest, self._dataset_digest):
            raise _Foreign(f"{entry} is of another arithmetic digest or dataset than the job")

    def commit(
        self,
        step: int,
        fingerprint: str,
        files: Mapping[str, bytes],
        manifest: Callable[[dict[str, FileRecord]], Manifest],
        evaluated: bool = False,
    ) -> Committed:
        """Commits the files as the checkpoint of `step`, reads it back, then removes what need not be kept.

        A whole checkpoint of this step and fingerprint that is already there stays: a job is a function. One of before the step
        was `evaluated` gives way. Raises NoSpace and CheckpointBroken.
        """
        target = self.folder / folder_name(step, self._arithmetic_digest)
        there = self._whole(target, step, fingerprint)
        if there is not None and evaluated and there.validation_loss is None:
            remove_folder(target)
            self._committed.pop(step, None)
            there = None
        if there is None:
            write_folder(target, files, manifest)
            try:
                there = verify_folder(target)
            except Damaged as damaged:
                raise CheckpointBroken(f"a checkpoint did not read back as it was written: {damaged}") from damaged
        committed = self._committed[step] = Committed(target, there)
        self._prune()
        return committed

    def _whole(self, target: Path, step: int, fingerprint: str) -> Manifest | None:
        if not target.exists():
            return None
        try:
            manifest = verify_folder(target)
            self._check(manifest, step, target)
            if manifest.fingerprint == fingerprint:
                return manifest
        except (Damaged, _Foreign):
            pass  # it is set aside for a look, and written anew
        set_aside(target)
        self._committed.pop(step, None)
        return None

    def best(self) -> Committed | None:
        """The one with the lowest finite validation loss, the earliest of equals; None when there is none."""
        evaluated = [
            (loss, step)
            for step, committed in self._committed.items()
            if (loss := committed.manifest.validation_loss) is not None and math.isfinite(loss)
        ]
        return self._committed[min(evaluated)[1]] if evaluated else None

    def _prune(self) -> None:
        kept = set(sorted(self._committed)[-self._keep :])
        if (best := self.best()) is not None:
            kept.add(best.step)
        for step in sorted(set(self._committed) - kept):
            remove_folder(self._committed.pop(step).folder)
        self._prune_damaged()

    def _prune_damaged(self) -> None:
        bad = sorted(
            (entry for entry in self.folder.iterdir() if ".bad-" in entry.name), key=lambda entry: entry.stat().st_mtime_ns
        )
        for entry in bad[: -limits.BAD_CHECKPOINTS_KEPT]:
            shutil.rmtree(entry)

    def held(self) -> list[Committed]:
        """All that stand there and count, by step."""
        return [self._committed[step] for step in sorted(self._committed)]

    def message(self, committed: Committed) -> job.Checkpoint:
        """A checkpoint as people see it."""
        manifest = committed.manifest
        message = job.Checkpoint(
            step=manifest.step,
            weights_sha256=manifest.weights_sha256,
            size_bytes=committed.size_bytes,
            best=committed is self.best(),
        )
        if manifest.validation_loss is not None:
            message.validation_loss = manifest.validation_loss
        message.create_time.FromDatetime(datetime.fromisoformat(manifest.create_time))
        return message

    def result(self) -> job.Result | None:
        """What the job gave so far: its last checkpoint, and all that can be downloaded. None when there is none."""
        if not self._committed:
            return None
        last = self._committed[max(self._committed)].manifest
        result = job.Result(step=last.step, weights_sha256=last.weights_sha256, fingerprint=last.fingerprint)
        for name in ("loss", "validation_loss", "validation_accuracy"):
            if (value := getattr(last, name)) is not None:
                setattr(result, name, value)
        if last.validation_loss is not None:
            result.validation_metrics.CopyFrom(metrics_message(last.validation_metrics))
            result.validation_classes.extend(class_messages(last.validation_classes, last.class_names))
        result.checkpoints.extend(map(self.message, self.held()))
        return result
