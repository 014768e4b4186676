"""A checkpoint is committed whole or not at all, whatever call dies; recovery takes the newest that verifies and says so."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator import limits
from coordinator.checkpoint_folder import (
    CheckpointBroken,
    Damaged,
    NoSpace,
    read_manifest,
    verify_folder,
)
from coordinator.checkpoints import Checkpoints, folder_name
from lockstep.contract.manifest import MANIFEST_FILE, MODEL_FILE, OPTIMIZER_FILE, FileRecord, Manifest

DIGEST = "d1" * 32


class Killed(BaseException):
    """The process died here."""


def manifest_of(step: int, fingerprint: str = "f", loss: float | None = None) -> Callable[[dict[str, FileRecord]], Manifest]:
    """What makes a manifest out of the files' records."""
    return lambda files: Manifest(
        job_id="job-1",
        run_number=1,
        step=step,
        epoch=1,
        arithmetic_digest=DIGEST,
        arithmetic_version=1,
        dataset_digest="da" * 32,
        fingerprint=fingerprint,
        weights_sha256="ab" * 32,
        files=files,
        spec={},
        input_shape=[1],
        create_time="2026-01-01T00:00:00Z",
        validation_loss=loss,
    )


def files_of(step: int) -> dict[str, bytes]:
    """The files of a step."""
    return {MODEL_FILE: f"model {step}".encode() * 100, OPTIMIZER_FILE: f"optimizer {step}".encode() * 100}


def open_job(folder: Path, keep: int = 3) -> Checkpoints:
    """The checkpoints of the job, recovered."""
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder, "job-1", DIGEST, "da" * 32, keep)
    checkpoints.recover()
    return checkpoints


def commit(folder: Path, step: int, keep: int = 3, loss: float | None = None, fingerprint: str = "f") -> None:
    """Commits one step as a new process would."""
    open_job(folder, keep).commit(step, fingerprint, files_of(step), manifest_of(step, fingerprint, loss))


def recovered(folder: Path) -> tuple[int, list[str]]:
    """The step that a new run begins after, and what it passed over."""
    found, passed_over = Checkpoints(folder, "job-1", DIGEST, "da" * 32, 3).recover()
    return (found.step if found else 0), passed_over


def names(folder: Path) -> list[str]:
    """What stands in the job's folder."""
    return sorted(entry.name for entry in folder.iterdir())


CALLS = ["open", "mkdir", "write", "posix_fallocate", "fsync", "rename", "unlink", "rmdir"]


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, error: Callable[[], BaseException], only: str = "") -> list[str]:
    """Lets the `number`-th of the calls fail before it does anything; gives the list of calls that are made."""
    made: list[str] = []

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if not only or name == only:
                made.append(name)
                if len(made) == number:
                    raise error()
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in CALLS:
        wrap(name)
    return made


def test_death_before_any_call_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    number, total, seen = 1, 10**9, set()
    while number <= total:
        folder = tmp_path / str(number)
        commit(folder, 10, keep=1)
        with pytest.MonkeyPatch.context() as monkeypatch:
            made = fail_at(monkeypatch, number, Killed)
            try:
                commit(folder, 20, keep=1)
                total = len(made)
            except Killed:
                pass
        step, passed_over = recovered(folder)
        assert step in (10, 20) and not passed_over, (number, made[-1])
        seen.add(step)
        commit(folder, 20, keep=1)
        assert names(folder) == [folder_name(20, DIGEST)], (number, made[-1])
        verify_folder(folder / folder_name(20, DIGEST))
        number += 1
    assert total > 20 and seen == {10, 20}


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_of_any_call_leaves_the_old_checkpoint_and_is_said(tmp_path: Path, number: int) -> None:
    at, total = 1, 10**9
    while at <= total:
        folder = tmp_path / str(at)
        commit(folder, 10)
        checkpoints = open_job(folder)
        with pytest.MonkeyPatch.context() as monkeypatch:
            made = fail_at(monkeypatch, at, lambda: OSError(number, os.strerror(number)))
            try:
                checkpoints.commit(20, "f", files_of(20), manifest_of(20))
                total = len(made)
            except NoSpace as full:
                assert number == errno.ENOSPC and made[-1] not in ("fsync", "rename")
                assert names(folder) == [folder_name(10, DIGEST)] and "room" in str(full)
            except CheckpointBroken as broken:
                assert str(folder) in str(broken)
        assert recovered(folder)[0] in (10, 20)
        at += 1
    assert total > 12


def test_fsync_is_never_tried_again(tmp_path: Path) -> None:
    checkpoints = open_job(tmp_path / "job")
    for act in (lambda: checkpoints.commit(10, "f", files_of(10), manifest_of(10)), checkpoints.recover):
        with pytest.MonkeyPatch.context() as monkeypatch:
            made = fail_at(monkeypatch, 1, lambda: OSError(errno.EIO, "I/O error"), only="fsync")
            with pytest.raises(CheckpointBroken, match="intact"):
                act()
        assert made == ["fsync"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "model flipped": lambda folder: flip(folder / MODEL_FILE),
    "optimizer flipped": lambda folder: flip(folder / OPTIMIZER_FILE),
    "manifest flipped": lambda folder: (folder / MANIFEST_FILE).write_bytes(
        (folder / MANIFEST_FILE).read_bytes().replace(b'"step"', b'"stop"')
    ),
    "model cut": lambda folder: os.truncate(folder / MODEL_FILE, 10),
    "manifest cut": lambda folder: os.truncate(folder / MANIFEST_FILE, 40),
    "manifest missing": lambda folder: (folder / MANIFEST_FILE).unlink(),
    "optimizer missing": lambda folder: (folder / OPTIMIZER_FILE).unlink(),
    "manifest of another step": lambda folder: shutil.copy(
        folder.with_name(folder_name(10, DIGEST)) / MANIFEST_FILE, folder / MANIFEST_FILE
    ),
    "a name outside": lambda folder: (folder / MANIFEST_FILE).write_text(
        (folder / MANIFEST_FILE).read_text().replace(MODEL_FILE, "../" + MODEL_FILE)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_recovery_falls_back_and_says_so_and_the_step_is_committed_anew(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "job"
    commit(folder, 10)
    commit(folder, 20)
    DAMAGES[damage](folder / folder_name(20, DIGEST))
    step, passed_over = recovered(folder)
    assert step == 10 and len(passed_over) == 1 and str(folder / folder_name(20, DIGEST)) in passed_over[0]
    assert names(folder) == sorted([folder_name(10, DIGEST), f"{folder_name(20, DIGEST)}.bad-1"])
    assert f"{folder_name(20, DIGEST)}.bad-1" in passed_over[0] and recovered(folder) == (10, [])
    commit(folder, 20)
    assert recovered(folder) == (20, [])
    assert f"{folder_name(20, DIGEST)}.bad-1" in names(folder)


def test_a_whole_checkpoint_of_the_step_stays_and_one_of_another_fingerprint_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    commit(folder, 10)
    target = folder / folder_name(10, DIGEST)
    before = target.stat().st_ino
    commit(folder, 10)
    assert target.stat().st_ino == before
    commit(folder, 10, fingerprint="other")
    assert read_manifest(target).fingerprint == "other"


def test_the_last_few_and_the_best_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: float("nan"), 50: 1.0, 60: None, 70: 5.0}
    for step, loss in losses.items():
        commit(folder, step, keep=2, loss=loss)
    assert names(folder) == sorted(folder_name(step, DIGEST) for step in (20, 60, 70))
    checkpoints = open_job(folder)
    result = checkpoints.result()
    assert result is not None and [(c.step, c.best) for c in result.checkpoints] == [(20, True), (60, False), (70, False)]


@pytest.mark.parametrize("loss", [float("inf"), float("-inf"), float("nan")])
def test_a_validation_loss_that_is_not_finite_is_never_the_best(tmp_path: Path, loss: float) -> None:
    folder = tmp_path / "job"
    for step in (10, 20, 30):
        commit(folder, step, keep=2, loss=loss)
    assert open_job(folder).best() is None
    assert names(folder) == sorted(folder_name(step, DIGEST) for step in (20, 30))
    commit(folder, 40, keep=2, loss=1e300)
    best = open_job(folder).best()
    assert best is not None and best.step == 40


def test_damaged_ones_do_not_pile_up(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    for _ in range(limits.BAD_CHECKPOINTS_KEPT + 2):
        commit(folder, 10)
        flip(folder / folder_name(10, DIGEST) / MODEL_FILE)
    commit(folder, 10)
    assert len([name for name in names(folder) if ".bad-" in name]) == limits.BAD_CHECKPOINTS_KEPT


def test_damaged_ones_of_steps_that_are_not_written_again_do_not_pile_up(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    commit(folder, 1)
    for step in range(2, limits.BAD_CHECKPOINTS_KEPT + 4):
        commit(folder, step)
        flip(folder / folder_name(step, DIGEST) / MODEL_FILE)
        assert recovered(folder)[0] == 1
    bad = [f"{folder_name(step, DIGEST)}.bad-1" for step in range(4, limits.BAD_CHECKPOINTS_KEPT + 4)]
    assert names(folder) == sorted([folder_name(1, DIGEST), *bad])


def test_what_is_of_another_job_or_arithmetic_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    commit(folder, 10)
    for job_id, digest, dataset in [
        ("job-2", DIGEST, "da" * 32),
        ("job-1", "e1" * 32, "da" * 32),
        ("job-1", DIGEST, "db" * 32),
    ]:
        found, passed_over = Checkpoints(folder, job_id, digest, dataset, 3).recover()
        assert found is None and len(passed_over) == 1


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("call", ["fsync:when=1", "fsync:when=3", "fsync:when=5", "fsync:when=7", "rename:when=1"])
def test_sigkill_at_a_system_call(tmp_path: Path, call: str) -> None:
    folder = tmp_path / "job"
    commit(folder, 10)
    name, _, when = call.partition(":")
    code = f"import sys; from tests.coordinator.test_checkpoints import commit, Path; commit(Path({str(folder)!r}), 20)"
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:signal=SIGKILL:{when}"]
    done = subprocess.run([*strace, sys.executable, "-B", "-c", code], cwd=Path(__file__).parents[2], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert recovered(folder)[0] == (20 if call == "fsync:when=7" else 10) or call == "rename:when=1"
    commit(folder, 20)
    assert recovered(folder) == (20, [])


def test_a_manifest_that_is_no_manifest_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="missing"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST_FILE).mkdir()
    with pytest.raises(Damaged, match="cannot be read"):
        read_manifest(tmp_path)
