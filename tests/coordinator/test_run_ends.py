"""The process of a run tells the truth about its end when the disk fails or is full."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import structlog

from coordinator import limits, run
from coordinator.checkpoint_folder import CheckpointBroken
from coordinator.exit_codes import EXIT_BROKEN, EXIT_FAILED, EXIT_SPOOL_FULL
from coordinator.group.cluster import Cluster
from coordinator.group.group import PORTABLE_WORKER, SHARD_WORKER
from coordinator.orders import Orders
from coordinator.reconciler import said_of
from coordinator.reports import Reports
from coordinator.spool import SpoolFull, read_events, spool_path
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import job_spec_pb2
from lockstep.v1 import training_job_pb2 as job
from tests.coordinator.one_run import Wanted


@pytest.fixture(autouse=True)
def no_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    """These orders have none."""
    monkeypatch.setattr(run, "check_dataset", lambda folder, interrupted: None)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """No space from now on, and no patience; gives how often space was waited for."""
    waits: list[int] = []

    def append(self: Any, frame: bytes) -> bool:
        waits.append(len(frame))
        return False

    monkeypatch.setattr(limits, "SPOOL_FULL_S", -1.0)
    monkeypatch.setattr("coordinator.spool.SpoolWriter._write", append)
    return waits


def order_of(files: Path) -> agent.RunWish:
    return agent.RunWish(order=agent.RunOrder(job_id="a-b", run_number=3), intent=agent.RunWish.RUN)


def trains(monkeypatch: pytest.MonkeyPatch, act: Any, kind: job.TrainingJob.Kind.ValueType = job.TrainingJob.TRAINING) -> None:
    """Puts `act` in the place of the loop; it is given the run's voice."""

    class Training:
        def __init__(self, order: agent.RunOrder, files_folder: Path, reports: Reports, *others: object) -> None:
            self._reports = reports

        def run(self) -> agent.RunEnded:
            return cast(agent.RunEnded, act(self._reports))

    monkeypatch.setitem(run.KINDS, kind, Training)


class Nowhere:
    """A cluster that is not asked for a group."""

    def group(self, handler: str) -> None:
        raise AssertionError(handler)


def carry_out(files: Path) -> None:
    run.carry_out(order_of(files), files, cast(Orders, Wanted()), cast(Cluster, Nowhere()))


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("no folder")
    carry_out(tmp_path)
    *_, (last, _) = read_events(spool_path(tmp_path, "a-b", 3))
    assert (last.ended.outcome, last.ended.cause) == (agent.RunEnded.LOST, agent.RunEnded.OWN)
    assert f"{tmp_path / 'checkpoints' / 'a-b'}, the folder of the job's checkpoints" in last.ended.reason
    assert "give the agent's user the right to write it" in last.ended.reason


def test_a_spool_without_space_is_waited_for_once_and_is_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: list[int]
) -> None:
    trains(monkeypatch, lambda reports: reports.notice(job.Notice.INFO, "A", "word"))
    with pytest.raises(SpoolFull, match="free some space"):
        carry_out(tmp_path)
    assert len(full_disk) == 1


def test_a_broken_checkpoint_stays_the_cause_when_the_spool_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: list[int]
) -> None:
    def act(reports: Reports) -> None:
        raise CheckpointBroken("the disk failed")

    trains(monkeypatch, act)
    with pytest.raises(CheckpointBroken):
        carry_out(tmp_path)
    assert len(full_disk) == 1


def test_a_broken_checkpoint_is_said_with_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(reports: Reports) -> None:
        raise CheckpointBroken("the disk failed")

    trains(monkeypatch, act)
    with pytest.raises(CheckpointBroken):
        carry_out(tmp_path)
    *_, (last, _) = read_events(spool_path(tmp_path, "a-b", 3))
    assert (last.ended.outcome, last.ended.cause) == (agent.RunEnded.LOST, agent.RunEnded.OWN)


@pytest.mark.parametrize(
    ("error", "code", "word", "cause"),
    [
        (SpoolFull("no space"), EXIT_SPOOL_FULL, "free some space", agent.RunEnded.OUTSIDE),
        (CheckpointBroken("broken"), EXIT_BROKEN, "look at the disk", agent.RunEnded.OWN),
        (OSError(errno.EIO, "I/O error"), EXIT_FAILED, "did not expect", agent.RunEnded.OWN),
    ],
)
def test_exit_codes_say_what_it_was_and_never_that_the_head_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, word: str, cause: int
) -> None:
    class FirstOrder:
        def __init__(self, descriptor: int) -> None:
            pass

        def first(self, timeout_s: float) -> agent.RunWish:
            return order_of(tmp_path)

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(run, "Orders", FirstOrder)
    monkeypatch.setattr(run, "carry_out", fail)
    monkeypatch.setattr(run, "die_with_parent", lambda parent: None)
    monkeypatch.setattr(run, "configure", lambda process: structlog.get_logger())
    monkeypatch.setattr(os, "dup", lambda descriptor: descriptor)
    monkeypatch.setattr(os, "dup2", lambda old, new: new)
    monkeypatch.setattr(os, "fdopen", lambda descriptor, mode: io.BytesIO())
    monkeypatch.setattr(sys, "stdin", sys.__stdin__)
    assert run.main(["--files", str(tmp_path), "--group", "local", "--parent", "1"]) == code
    said, found = said_of(code, 0)
    assert word in said and "head" not in said and found == cause


@pytest.mark.parametrize(
    ("kind", "handler"),
    [
        (job.TrainingJob.TRAINING, PORTABLE_WORKER),
        (job.TrainingJob.VERIFY, PORTABLE_WORKER),
        (job.TrainingJob.GRADIENT_CHECK, SHARD_WORKER),
    ],
)
def test_what_portable_weights_are_made_of_is_portable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: job.TrainingJob.Kind.ValueType, handler: str
) -> None:
    class Asked:
        def __init__(self, *given: object) -> None:
            self._make_group = cast(Callable[[], object], given[4])

        def run(self) -> agent.RunEnded:
            self._make_group()
            return agent.RunEnded()

    wish = order_of(tmp_path)
    wish.order.kind, wish.order.spec.training.arithmetic = kind, job_spec_pb2.PORTABLE
    monkeypatch.setitem(run.KINDS, kind, Asked)
    run.carry_out(wish, tmp_path, cast(Orders, Wanted()), cast(Cluster, Nowhere()))
    *_, (last, _) = read_events(spool_path(tmp_path, "a-b", 3))
    assert last.ended.reason.endswith(f"AssertionError: {handler}")


def test_a_run_does_what_its_kind_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = order_of(tmp_path)
    for number, kind in enumerate([job.TrainingJob.GRADIENT_CHECK, job.TrainingJob.VERIFY], start=1):
        said = agent.RunEnded(outcome=agent.RunEnded.SUCCEEDED, reason=job.TrainingJob.Kind.Name(kind))
        trains(monkeypatch, lambda reports, said=said: said, kind)
        wish.order.kind, wish.order.run_number = kind, number
        run.carry_out(wish, tmp_path, cast(Orders, Wanted()), cast(Cluster, Nowhere()))
        *_, (last, _) = read_events(spool_path(tmp_path, "a-b", number))
        assert last.ended.reason == said.reason
    assert sorted(run.KINDS) == sorted(job.TrainingJob.Kind.values())[1:]
