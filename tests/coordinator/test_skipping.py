"""Steps that are skipped: the same ones whatever the workers, the stretches and the runs; told, counted, and bounded."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from coordinator.model_files import ModelFiles
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import job_spec_pb2
from lockstep.v1.optimization_pb2 import Adam, Optimizer
from tests.coordinator.one_run import curve, kinds, run_once
from tests.coordinator.replay_orders import replay_order
from tests.coordinator.small_job import make_order

pytestmark = pytest.mark.timeout(60)

EPOCHS = 8
# What a gradient is made of overflows; only its square, in Adam's second average.
INFINITE, LARGE = np.float32(np.inf), np.float32(1e25)


def order_of(
    files: Path,
    *,
    workers: int = 1,
    run_number: int = 1,
    checkpoint_steps: int = 0,
    policy: job_spec_pb2.NonFinitePolicy.ValueType = job_spec_pb2.SKIP_STEP,
    bad: dict[int, np.float32] | None = None,
) -> agent.RunOrder:
    """The small job with Adam, batches of 16 rows, 10 an epoch; one input of the `bad` training rows is this number."""
    fresh = not (files / "datasets").exists()
    order = make_order(
        files,
        epochs=EPOCHS,
        batch_size=16,
        workers=workers,
        run_number=run_number,
        checkpoint_steps=checkpoint_steps,
        standardize=False,
    )
    order.spec.optimizer.CopyFrom(Optimizer(adam=Adam(learning_rate=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8)))
    order.spec.non_finite = policy
    if fresh:
        path = files / "datasets" / order.dataset_digest / "x.npy"
        training = ModelFiles(order, files)._split()[1]
        x = np.load(path)
        for row, value in (bad or {20: INFINITE, 100: LARGE}).items():
            x[training[row], 2] = value
        np.save(path, x)
    return order


def told(events: list[agent.RunEvent]) -> list[str]:
    """What was said of skipped steps."""
    return [event.notice.text for event in events if event.notice.reason == "STEP_SKIPPED"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[agent.RunEnded, list[agent.RunEvent]]:
    """The job on one worker."""
    files = tmp_path_factory.mktemp("undisturbed")
    return run_once(order_of(files), files)


def test_a_replay_skips_the_same_steps(tmp_path: Path) -> None:
    order = order_of(tmp_path, checkpoint_steps=40)
    ended, events = run_once(order, tmp_path)
    assert told(events)
    steps = [one.step for one in ended.result.checkpoints]
    for run, start in enumerate([0, steps[0]], start=1):
        replay = replay_order(order, ended.result.fingerprint, start, steps[-1], run=run)
        done, said = run_once(replay, tmp_path)
        assert done.outcome == agent.RunEnded.SUCCEEDED, done.reason
        assert not told(said) and not curve(said)


@pytest.mark.parametrize(("workers", "checkpoint_steps"), [(3, 0), (1, 1), (2, 7)])
def test_workers_and_stretches_skip_the_same_steps(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]], workers: int, checkpoint_steps: int
) -> None:
    ended, events = run_once(order_of(tmp_path, workers=workers, checkpoint_steps=checkpoint_steps), tmp_path)
    assert ended.outcome == agent.RunEnded.SUCCEEDED, ended.reason
    assert ended.result.weights_sha256 == undisturbed[0].result.weights_sha256
    assert told(events) == told(undisturbed[1])
    last = [event.progress.progress for event in events if event.WhichOneof("event") == "progress"][-1]
    assert last.skipped_steps == len(told(undisturbed[1])) and last.applied_rows == EPOCHS * 160
    losses = {step for step, name in curve(events) if name == "loss"}
    assert losses == set(range(1, EPOCHS * 10 + 1))


def test_skipped_steps_are_told_with_their_place(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]]
) -> None:
    ended, events = undisturbed
    assert ended.outcome == agent.RunEnded.SUCCEEDED and len(told(events)) in range(EPOCHS, 2 * EPOCHS + 1)
    located = [text for text in told(events) if "layers[0].dense" in text]
    overflowed = [text for text in told(events) if "the update gave" in text]
    assert len(located) == EPOCHS and overflowed and len(located) + len(overflowed) == len(told(events))
    row = ModelFiles(order_of(tmp_path), tmp_path)._split()[1][20]
    words = (f", row {row} (counted from 0); the step was skipped", "in the input of layers[0].dense, shard ")
    assert all(text.endswith(words[0]) and words[1] in text for text in located)


def test_a_run_from_a_checkpoint_skips_as_if_there_had_been_one_run(
    tmp_path: Path, undisturbed: tuple[agent.RunEnded, list[agent.RunEvent]]
) -> None:
    order = order_of(tmp_path, checkpoint_steps=13)
    order.spec.checkpoints.keep = 10
    run_once(order, tmp_path)
    folders = sorted((tmp_path / "checkpoints" / "small-0001").glob("*-*"), key=lambda path: int(path.name.partition("-")[0]))
    for folder in folders[1:]:
        shutil.rmtree(folder)
    manifest = json.loads((folders[0] / "manifest.json").read_text())
    before = [text for text in told(undisturbed[1]) if int(text.split()[1].rstrip(":")) <= manifest["step"]]
    assert manifest["controller"]["skipped_steps"] == len(before) > 0
    order = order_of(tmp_path, run_number=2, workers=2)
    order.furthest_step = manifest["step"] + 1
    ended, events = run_once(order, tmp_path)
    assert [event.started.start_step for event in events if event.HasField("started")] == [manifest["step"]] == [13]
    assert ended.result.weights_sha256 == undisturbed[0].result.weights_sha256
    skipped = [event.progress.progress.skipped_steps for event in events if event.WhichOneof("event") == "progress"]
    assert skipped[-1] == len(told(undisturbed[1]))
    assert all(int(text.split()[1].rstrip(":")) > order.furthest_step for text in told(events))


def test_an_update_that_overflows_ends_a_job_that_must_not_skip_at_its_step(tmp_path: Path) -> None:
    order = order_of(tmp_path, policy=job_spec_pb2.FAIL, bad={100: LARGE}, checkpoint_steps=20)
    ended, _ = run_once(order, tmp_path)
    assert ended.outcome == agent.RunEnded.FAILED
    assert f"step {ended.last_step + 1}: the update gave squares that are not finite" in ended.reason


def test_a_job_that_only_skips_fails(tmp_path: Path) -> None:
    order = order_of(tmp_path, bad=dict.fromkeys(range(160), INFINITE))
    order.plan.total_steps = 400
    ended, events = run_once(order, tmp_path)
    assert ended.outcome == agent.RunEnded.FAILED and ended.last_step == 99
    assert "step 100: " in ended.reason and "number 100 in a row that is skipped" in ended.reason
    assert 0 < len(told(events)) <= 20 and "notice" in kinds(events)
    assert all(math.isnan(value) for (_, name), value in curve(events).items() if name == "loss")
