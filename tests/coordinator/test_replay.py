"""The run of a replay: right checkpoints pass, a bit that was altered is named at its step, nothing is written."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.checkpoint_folder import read_manifest
from coordinator.group.local import LocalGroup
from coordinator.replay import differs, verdict
from lockstep.contract.manifest import MODEL_FILE, OPTIMIZER_FILE
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import training_job_pb2 as job
from lockstep.v1.optimization_pb2 import PlateauSchedule, Schedule
from tests.coordinator.altered import alter, checkpoint_folder
from tests.coordinator.one_run import Wanted, kinds, run_once
from tests.coordinator.replay_orders import replay_order
from tests.coordinator.small_job import make_order

pytestmark = pytest.mark.timeout(60)

STEPS = [2, 4, 6, 8, 9]
TRAINED = "small-0001"


def training(files: Path, **options: object) -> agent.RunOrder:
    """The small job, all of whose checkpoints are kept."""
    order = make_order(files, checkpoint_steps=2, **options)  # type: ignore[arg-type]
    order.spec.checkpoints.keep = 100
    return order


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[tuple[agent.RunOrder, agent.RunEnded]]:
    """The job, run to its end."""
    order = training(tmp_path)
    ended, _ = run_once(order, tmp_path)
    assert [one.step for one in ended.result.checkpoints] == STEPS
    yield order, ended


def tree(folder: Path) -> dict[str, str]:
    """The hash of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_checkpoint_of_a_right_job_is_what_it_computes(
    tmp_path: Path, trained: tuple[agent.RunOrder, agent.RunEnded]
) -> None:
    order, ended = trained
    before = tree(tmp_path / "checkpoints" / TRAINED)
    for run, (step, start) in enumerate(zip(STEPS, [0, *STEPS], strict=False), start=1):
        replay = replay_order(order, ended.result.fingerprint, start, step, run=run)
        replay.workers = 2 if step == 9 else 1  # workers decide nothing
        done, events = run_once(replay, tmp_path)
        took = f"step {step} replayed" if step == start + 1 else f"steps {start + 1} to {step} replayed"
        assert (done.outcome, done.last_step) == (agent.RunEnded.SUCCEEDED, step)
        assert done.reason == f"{took}: the weights are those of the checkpoint of step {step}, and so is the optimizer's state"
        (found,) = done.result.replay.steps
        recorded = next(one.weights_sha256 for one in ended.result.checkpoints if one.step == step)
        assert found.weights_sha256 == found.checkpoint_weights_sha256 == recorded and not differs(found)
        assert (done.result.replay.start_step, done.result.fingerprint) == (start, ended.result.fingerprint)
        assert set(kinds(events)) == {"started", "progress"} and events[0].started.start_step == start
        last = events[-1].progress.progress
        assert (last.step, last.total_steps, last.applied_rows, last.replayed_rows) == (step, step, 0, 0)
    assert tree(tmp_path / "checkpoints" / TRAINED) == before
    assert tree(tmp_path / "checkpoints" / "verify-0001") == {}


def test_one_altered_bit_is_named_with_both_hashes(tmp_path: Path, trained: tuple[agent.RunOrder, agent.RunEnded]) -> None:
    order, ended = trained
    right = next(one.weights_sha256 for one in ended.result.checkpoints if one.step == 6)
    wrong = alter(checkpoint_folder(tmp_path, TRAINED, 6)).weights_sha256
    done, _ = run_once(replay_order(order, ended.result.fingerprint, 4, 6), tmp_path)
    assert done.outcome == agent.RunEnded.FAILED
    assert done.reason == (
        f"the checkpoint of step 6 is not what the job computes: its weights_sha256 is {wrong}, the replay's {right}; "
        "replayed from the checkpoint of step 2; that of step 4 is right"
    )
    assert [differs(step) for step in done.result.replay.steps] == [False, True]


def test_an_altered_start_is_named_and_not_the_step_that_was_asked(
    tmp_path: Path, trained: tuple[agent.RunOrder, agent.RunEnded]
) -> None:
    order, ended = trained
    wrong = alter(checkpoint_folder(tmp_path, TRAINED, 4)).weights_sha256
    done, events = run_once(replay_order(order, ended.result.fingerprint, 4, 6), tmp_path)
    assert done.outcome == agent.RunEnded.FAILED and done.result.replay.start_step == 2
    assert done.reason.startswith("the checkpoint of step 4 is not") and wrong in done.reason
    assert done.reason.endswith("replayed from the checkpoint of step 2; that of step 6 is right")
    assert [event.notice.reason for event in events if event.HasField("notice")] == ["CHECKPOINT_DIFFERS"]


def test_a_start_that_is_not_what_was_reported_is_not_begun_with_and_is_named(
    tmp_path: Path, trained: tuple[agent.RunOrder, agent.RunEnded]
) -> None:
    order, ended = trained
    asked = replay_order(order, ended.result.fingerprint, 4, 6)
    asked.acknowledged[4] = read_manifest(checkpoint_folder(tmp_path, TRAINED, 4)).weights_sha256
    wrong = alter(checkpoint_folder(tmp_path, TRAINED, 4)).weights_sha256
    done, events = run_once(asked, tmp_path)
    assert done.outcome == agent.RunEnded.FAILED and done.result.replay.start_step == 2
    assert done.reason.startswith("the checkpoint of step 4 is not") and wrong in done.reason
    (said,) = [event.notice for event in events if event.HasField("notice")]
    assert said.reason == "CHECKPOINT_DIFFERS" and f"the job reported {asked.acknowledged[4]}" in said.text


def test_where_all_on_the_way_are_altered_the_seed_decides(
    tmp_path: Path, trained: tuple[agent.RunOrder, agent.RunEnded]
) -> None:
    order, ended = trained
    for step in (2, 4):
        alter(checkpoint_folder(tmp_path, TRAINED, step))
    done, _ = run_once(replay_order(order, ended.result.fingerprint, 2, 4), tmp_path)
    assert done.reason.count("is not what the job computes") == 2 and done.reason.endswith("replayed from the seed")
    # The first one has nothing before it.
    done, events = run_once(replay_order(order, ended.result.fingerprint, 0, 2, run=2), tmp_path)
    assert done.reason.startswith("the checkpoint of step 2 is not") and "notice" not in kinds(events)


def test_an_altered_optimizer_state_is_named(tmp_path: Path, trained: tuple[agent.RunOrder, agent.RunEnded]) -> None:
    order, ended = trained
    wrong = alter(checkpoint_folder(tmp_path, TRAINED, 9), OPTIMIZER_FILE).files[OPTIMIZER_FILE]["sha256"]
    done, _ = run_once(replay_order(order, ended.result.fingerprint, 8, 9), tmp_path)
    found = done.result.replay.steps[-1]
    assert done.outcome == agent.RunEnded.FAILED and found.checkpoint_optimizer_sha256 == wrong
    assert f"step 9 is not what the job computes: its optimizer state has SHA-256 {wrong}" in done.reason
    assert found.weights_sha256 == found.checkpoint_weights_sha256


def test_what_its_own_hashes_betray_is_said_without_a_replay(
    tmp_path: Path, trained: tuple[agent.RunOrder, agent.RunEnded]
) -> None:
    order, ended = trained
    path = checkpoint_folder(tmp_path, TRAINED, 6) / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    done, events = run_once(replay_order(order, ended.result.fingerprint, 4, 6), tmp_path)
    assert done.outcome == agent.RunEnded.FAILED and events == []
    assert done.reason.startswith("the checkpoint of step 6 is damaged: ") and MODEL_FILE in done.reason
    # One that is damaged cannot be begun at.
    done, events = run_once(replay_order(order, ended.result.fingerprint, 6, 8, run=2), tmp_path)
    assert done.outcome == agent.RunEnded.SUCCEEDED and done.reason.startswith("steps 5 to 8 replayed")
    assert events[0].notice.reason == "CHECKPOINT_DAMAGED" and events[1].started.start_step == 4


def test_a_checkpoint_that_is_gone_fails_it(tmp_path: Path, trained: tuple[agent.RunOrder, agent.RunEnded]) -> None:
    order, ended = trained
    done, _ = run_once(replay_order(order, ended.result.fingerprint, 4, 5), tmp_path)
    assert done.outcome == agent.RunEnded.FAILED and "manifest.json is missing" in done.reason


def test_steps_without_checkpoints_are_hashed_and_nothing_is_judged(
    tmp_path: Path, trained: tuple[agent.RunOrder, agent.RunEnded]
) -> None:
    order, ended = trained
    alter(checkpoint_folder(tmp_path, TRAINED, 4))
    done, _ = run_once(replay_order(order, ended.result.fingerprint, 0, hashed=(0, 1, 2, 3, 4)), tmp_path)
    assert done.outcome == agent.RunEnded.SUCCEEDED
    steps = done.result.replay.steps
    assert [step.step for step in steps] == [0, 1, 2, 3, 4] and len({step.weights_sha256 for step in steps}) == 5
    assert [differs(step) for step in steps] == [False, False, False, False, True]
    assert verdict(job.ReplayResult(steps=steps[:2])) == "step 1 replayed from the seed; 2 of them hashed"


def test_what_acts_on_evaluations_is_evaluated(tmp_path: Path) -> None:
    # The first evaluation behind which the loss is not lower than before lowers the rate at once.
    order = training(tmp_path, schedule=Schedule(plateau=PlateauSchedule(factor=0.5, patience=1)), learning_rate=3.0, epochs=6)
    order.spec.evaluation.every_steps = 1
    ended, _ = run_once(order, tmp_path)
    steps = [one.step for one in ended.result.checkpoints]
    done, _ = run_once(replay_order(order, ended.result.fingerprint, 0, steps[-1]), tmp_path)
    assert done.outcome == agent.RunEnded.SUCCEEDED, done.reason
    done, _ = run_once(replay_order(order, ended.result.fingerprint, steps[-2], steps[-1], run=2), tmp_path)
    assert done.outcome == agent.RunEnded.SUCCEEDED, done.reason


def test_other_nodes_are_refused_with_the_reason(tmp_path: Path, trained: tuple[agent.RunOrder, agent.RunEnded]) -> None:
    done, events = run_once(replay_order(trained[0], "0" * 64, 4, 6), tmp_path)
    assert done.outcome == agent.RunEnded.FAILED and not done.HasField("result")
    assert "0" * 64 in done.reason and trained[1].result.fingerprint in done.reason and "goes on" not in done.reason
    assert [event.notice.reason for event in events] == ["NODE_FINGERPRINT_DIFFERS"]


def test_cancel_and_pause_come_between_stretches(tmp_path: Path, trained: tuple[agent.RunOrder, agent.RunEnded]) -> None:
    order, ended = trained
    wanted = Wanted()
    asked = iter([False, True])
    wanted.paused = lambda: next(asked, True)  # type: ignore[method-assign]
    done, _ = run_once(replay_order(order, ended.result.fingerprint, 0, 9), tmp_path, wanted)
    assert (done.outcome, done.last_step) == (agent.RunEnded.PAUSED, 1) and "begins again" in done.reason
    wanted = Wanted()
    wanted.cancel = True
    done, _ = run_once(replay_order(order, ended.result.fingerprint, 0, 9, run=2), tmp_path, wanted)
    assert (done.outcome, done.reason) == (agent.RunEnded.CANCELLED, "cancelled after step 0")


def test_a_lost_worker_loses_the_run(tmp_path: Path, trained: tuple[agent.RunOrder, agent.RunEnded]) -> None:
    order, ended = trained
    group = LocalGroup()
    wanted = Wanted()

    def lose() -> bool:
        for pid in group.pids():
            os.kill(pid, signal.SIGKILL)
        return False

    wanted.paused = lose  # type: ignore[method-assign]
    done, _ = run_once(replay_order(order, ended.result.fingerprint, 0, 9), tmp_path, wanted, make_group=lambda: group)
    assert (done.outcome, done.cause) == (agent.RunEnded.LOST, agent.RunEnded.OUTSIDE) and not done.HasField("result")
