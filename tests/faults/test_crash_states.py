"""Row 10: the power is cut behind any call of a checkpoint's commit, and whatever was not synced is lost, or is not."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.checkpoint_folder import Damaged, read_manifest, verify_folder
from coordinator.checkpoints import folder_name
from lockstep.contract.manifest import MANIFEST_FILE
from tests.coordinator.test_checkpoints import DIGEST, files_of, manifest_of, open_job, recovered
from tests.faults.crash_states import RecordedDisk, Tree, restore

pytestmark = pytest.mark.faults

OLD, NEW = 3, 6


@pytest.mark.parametrize("keep", [1, 2])
def test_a_cut_anywhere_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, keep: int, record_property: Callable[[str, object], None]
) -> None:
    """Whole, and under its name from the first moment; and the new one, once its commit has returned."""
    began = time.monotonic()
    checkpoints = open_job(tmp_path / "job", keep)
    checkpoints.commit(OLD, "f", files_of(OLD), manifest_of(OLD))
    calls: list[tuple[str, set[Tree]]] = []
    disk = RecordedDisk(tmp_path / "job", lambda call: calls.append((call, disk.possible())))
    with disk.recording():
        checkpoints.commit(NEW, "f", files_of(NEW), manifest_of(NEW))
    steps: dict[Tree, int] = {}
    for number, (call, possible) in enumerate(calls, 1):
        for tree in possible - steps.keys():
            steps[tree] = what_is_recovered(tree, tmp_path / "after")
            assert steps[tree] in (OLD, NEW), f"row 10: no checkpoint is left behind call {number}, {call}"
    assert {steps[tree] for tree in calls[-1][1]} == {NEW}, "row 10: a checkpoint that was acknowledged is lost"
    assert set(steps.values()) == {OLD, NEW}
    record_property("fault_rows", {10: [len(steps), len(steps), len(steps), time.monotonic() - began]})


def test_where_there_is_a_manifest_there_is_all_that_it_names(tmp_path: Path) -> None:
    """Under whatever name, behind any call: it is written last."""
    folder = tmp_path / "job"
    checkpoints = open_job(folder)

    def look(call: str) -> None:
        for path in folder.rglob(MANIFEST_FILE):
            try:
                read_manifest(path.parent)
            except Damaged:
                continue  # not written yet
            try:
                verify_folder(path.parent)
            except Damaged as damaged:
                raise AssertionError(f"row 10: a manifest speaks of what is not there: {damaged}") from damaged
            seen.append(call)

    seen: list[str] = []
    with RecordedDisk(folder, look).recording():
        checkpoints.commit(NEW, "f", files_of(NEW), manifest_of(NEW))
    assert seen[0] == "write"  # the manifest's own


def test_states_are_what_a_file_system_may_leave(tmp_path: Path) -> None:
    seen: list[set[Tree]] = []
    disk = RecordedDisk(tmp_path, lambda call: seen.append(disk.possible()))
    with disk.recording():
        fd = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"1234")
        os.fsync(fd)
        os.close(fd)
        os.rename(tmp_path / "a", tmp_path / "b")
        fd = os.open(tmp_path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        os.unlink(tmp_path / "b")
    nothing, whole = (), b"1234"
    created, written, synced, renamed, folder_synced, removed = seen
    assert created == {nothing, (("a", b""),)}
    assert written == created | {(("a", b"12"),), (("a", whole),)}
    assert synced == {nothing, (("a", whole),)}
    assert renamed == synced | {(("b", whole),)}
    assert folder_synced == {(("b", whole),)}
    assert removed == folder_synced | {nothing}


def what_is_recovered(tree: Tree, folder: Path) -> int:
    """The step that a new run begins after, 0 for none. Raises AssertionError where it meets half a checkpoint."""
    restore(tree, folder)
    step, passed_over = recovered(folder)
    assert not passed_over, f"row 10: a checkpoint has its name and is not whole: {passed_over}"
    assert not [entry for entry in folder.iterdir() if entry.suffix], "row 10: something is left"
    if step:
        found = folder / folder_name(step, DIGEST)
        content = {name: (found / name).read_bytes() for name in files_of(step)}
        assert content == files_of(step), f"row 10: what is recovered for step {step} is a mixture"
    shutil.rmtree(folder)
    return step
