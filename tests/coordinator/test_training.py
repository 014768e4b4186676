"""One run's loop with real workers as plain processes: the same weights whatever happens, and a sentence for what did."""

from __future__ import annotations

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator import checkpoint_folder, limits
from coordinator.checkpoint_folder import NoSpace, read_manifest
from coordinator.group.group import PORTABLE_WORKER
from coordinator.group.local import LocalGroup
from coordinator.model_files import ModelFiles
from lockstep.contract.manifest import MODEL_FILE
from lockstep.contract.weights import weights_sha256_of_file
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import training_job_pb2 as job
from lockstep.v1.dataset_service_pb2 import NpzFormat, UploadHeader
from lockstep.v1.model_pb2 import Dense, Embedding, Layer, ModelSpec
from tests.coordinator.altered import alter
from tests.coordinator.one_run import Wanted, curve, kinds, run_once
from tests.coordinator.small_job import make_order
from worker.data.ingest import ingest

pytestmark = pytest.mark.timeout(60)

ANOTHER_KERNEL = {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> agent.RunEnded:
    """The small job on one worker, from start to end."""
    files = tmp_path_factory.mktemp("undisturbed")
    return run_once(make_order(files), files)[0]


def folders(files: Path) -> list[Path]:
    """The checkpoints of the small job, by step."""
    return sorted((files / "checkpoints" / "small-0001").glob("*-*"), key=lambda path: int(path.name.partition("-")[0]))


def without_checkpoints(result: job.Result) -> job.Result:
    """The result but for what holds times."""
    copy = job.Result.FromString(result.SerializeToString())
    del copy.checkpoints[:]
    return copy


def test_three_workers_give_the_weights_and_curves_of_one(tmp_path: Path, undisturbed: agent.RunEnded) -> None:
    order = make_order(tmp_path, workers=3)
    ended, events = run_once(order, tmp_path)
    assert ended.outcome == agent.RunEnded.SUCCEEDED
    assert ended.result.weights_sha256 == undisturbed.result.weights_sha256
    assert ended.result.validation_loss == undisturbed.result.validation_loss
    assert len(ended.computed_rows) == 3 and sum(ended.computed_rows) == order.plan.training_rows * 3
    assert kinds(events)[0] == "started" and kinds(events)[-2:] == ["progress", "checkpoint"]
    progress = events[-2].progress.progress
    assert (progress.step, progress.applied_rows, progress.replayed_rows) == (9, 480, 0)
    points = curve(events)
    assert {step for step, name in points if name == "loss"} == set(range(1, 10))
    assert {step for step, name in points if name == "validation_accuracy"} == {3, 6, 9}
    (folder,) = folders(tmp_path)
    assert weights_sha256_of_file(folder / MODEL_FILE) == ended.result.weights_sha256
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["class_names"] == ["a", "b", "c"] and len(manifest["preprocessing"]["standardize"]["mean"]) == 8


def test_a_run_tells_all_metrics_and_one_that_goes_on_tells_them_again(tmp_path: Path, undisturbed: agent.RunEnded) -> None:
    order = make_order(tmp_path, workers=2)
    ended, events = run_once(order, tmp_path)
    result = ended.result
    assert without_checkpoints(result) == without_checkpoints(undisturbed.result)
    names = {field.name for field, _ in result.validation_metrics.ListFields()}
    assert names == {"precision", "recall", "f1", "log_loss"}
    classes = result.validation_classes
    assert [one.name for one in classes] == ["a", "b", "c"] and sum(one.support for one in classes) == 40
    assert result.validation_accuracy == sum(one.correct for one in classes) / 40
    for one in classes:
        assert (one.precision, one.recall) == (one.correct / one.predicted, one.correct / one.support)
        assert one.f1 == 2 * one.correct / (one.support + one.predicted)
    points = curve(events)
    assert {name for step, name in points if step == 9} >= {f"validation_{name}" for name in names}
    assert points[9, "validation_f1"] == result.validation_metrics.f1 == sum(one.f1 for one in classes) / 3
    assert events[-2].progress.progress.validation_metrics == result.validation_metrics
    order.run_number = 2
    again, _ = run_once(order, tmp_path)
    assert again.result == result


def test_labels_at_positions_have_the_same_weights_and_metrics_on_any_number_of_workers(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    tokens = (random.integers(0, 9, (600, 1)) + 2 * np.arange(13)) % 9
    following = np.where(random.random((600, 12)) < 0.2, -100, tokens[:, 1:])
    np.savez(tmp_path / "texts.npz", x=tokens[:, :-1], y=following)
    dataset = ingest(tmp_path / "texts.npz", tmp_path / "new", UploadHeader(dataset_id="texts", npz=NpzFormat()))
    (tmp_path / "datasets").mkdir()
    (tmp_path / "new").rename(tmp_path / "datasets" / dataset["digest"])
    order = make_order(tmp_path, rows=600, standardize=False, epochs=4)
    order.spec.model.CopyFrom(
        ModelSpec(layers=[Layer(embedding=Embedding(vocabulary=9, width=8)), Layer(dense=Dense(units=9))])
    )
    order.spec.loss.softmax_cross_entropy.ignored_label = -100
    order.spec.validation_fraction = 0.5
    order.plan.training_rows = order.plan.validation_rows = 300
    order.plan.steps_per_epoch, order.plan.total_steps = 5, 20
    results = []
    for workers in (1, 3):
        order.workers, order.job_id = workers, f"texts-{workers}"
        ended, _ = run_once(order, tmp_path)
        assert ended.outcome == agent.RunEnded.SUCCEEDED
        results.append(without_checkpoints(ended.result))
    assert results[0] == results[1]
    metrics = results[0].validation_metrics
    assert metrics.perplexity == pytest.approx(math.exp(metrics.log_loss), rel=1e-15)
    assert metrics.top_5_accuracy >= results[0].validation_accuracy > 0.5
    counted = sum(one.support for one in results[0].validation_classes)
    assert 300 * 12 * 0.75 < counted < 300 * 12 * 0.85


def test_a_new_run_goes_on_from_the_checkpoint_to_the_same_weights(tmp_path: Path, undisturbed: agent.RunEnded) -> None:
    order = make_order(tmp_path, checkpoint_steps=2)
    wanted = Wanted()
    asked = iter([False])
    wanted.paused = lambda: next(asked, True)  # type: ignore[method-assign]
    paused, first = run_once(order, tmp_path, wanted)
    assert (paused.outcome, paused.last_step, paused.result.step) == (agent.RunEnded.PAUSED, 1, 1)
    order.run_number, order.workers, order.furthest_step = 2, 2, 4
    ended, events = run_once(order, tmp_path)
    assert ended.result.weights_sha256 == undisturbed.result.weights_sha256
    assert events[0].checkpoint.step == 1 and events[1].started.start_step == 1
    assert events[-2].progress.progress.replayed_rows == 64 + 32 + 64
    assert {**curve(first), **curve(events)}.keys() == {(step, name) for step, name in curve(first) | curve(events)}
    order.run_number = 3
    again, events = run_once(order, tmp_path)
    assert (again.outcome, kinds(events)) == (agent.RunEnded.SUCCEEDED, ["checkpoint"])
    assert again.result == ended.result


def test_a_damaged_checkpoint_is_passed_over_with_a_notice(tmp_path: Path, undisturbed: agent.RunEnded) -> None:
    order = make_order(tmp_path, checkpoint_steps=2)
    run_once(order, tmp_path)
    for folder in folders(tmp_path)[-2:]:
        with (folder / MODEL_FILE).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\xff")
    order.run_number = 2
    ended, events = run_once(order, tmp_path)
    assert ended.result.weights_sha256 == undisturbed.result.weights_sha256
    notices = [event.notice for event in events if event.WhichOneof("event") == "notice"]
    assert [notice.reason for notice in notices] == ["CHECKPOINT_DAMAGED"] * 2
    assert MODEL_FILE in notices[0].text and "step" in notices[0].text


def test_a_checkpoint_that_is_not_what_was_reported_is_passed_over_and_all_that_count_are_said(
    tmp_path: Path, undisturbed: agent.RunEnded
) -> None:
    order = make_order(tmp_path, checkpoint_steps=2)
    order.spec.checkpoints.keep = 3
    run_once(order, tmp_path)
    whole = [int(folder.name.partition("-")[0]) for folder in folders(tmp_path)]
    newest = max(whole)
    folder = folders(tmp_path)[-1]
    order.run_number, order.acknowledged[newest] = 2, read_manifest(folder).weights_sha256
    wrong = alter(folder).weights_sha256
    ended, events = run_once(order, tmp_path)
    assert ended.result.weights_sha256 == undisturbed.result.weights_sha256
    (said,) = [event.notice for event in events if event.HasField("notice")]
    assert said.reason == "CHECKPOINT_DAMAGED" and wrong in said.text and order.acknowledged[newest] in said.text
    there = [event.checkpoint.step for event in events if event.HasField("checkpoint")]
    assert there == [max(whole[:-1]), *whole[:-1], newest]


def test_a_class_on_one_side_of_the_split_is_told(tmp_path: Path) -> None:
    order = make_order(tmp_path)
    assert ModelFiles(order, tmp_path).classes_on_one_side() == []
    order.spec.validation_fraction, order.plan.validation_rows = 0.005, 1
    (sentence,) = ModelFiles(order, tmp_path).classes_on_one_side()
    assert sentence.startswith("the validation rows have none of class ") and "seed" in sentence


def test_cancel_ends_a_stretch_under_way(tmp_path: Path) -> None:
    wanted = Wanted()
    calls = 0

    def cancelled() -> bool:
        nonlocal calls
        calls += 1
        return calls > 10

    wanted.cancelled = cancelled  # type: ignore[method-assign]
    ended, _ = run_once(make_order(tmp_path, epochs=100_000), tmp_path, wanted)
    assert ended.outcome == agent.RunEnded.CANCELLED and ended.reason.endswith("it has no checkpoint yet")
    wanted = Wanted()
    wanted.pause = True
    fresh, events = run_once(make_order(tmp_path, job_id="small-0002"), tmp_path, wanted)
    assert fresh.outcome == agent.RunEnded.PAUSED and not events


def test_a_run_starts_on_the_slots_that_it_has_by_now(tmp_path: Path, undisturbed: agent.RunEnded) -> None:
    wanted = Wanted()
    wanted.count = 1
    ended, _ = run_once(make_order(tmp_path, workers=2), tmp_path, wanted)
    assert len(ended.computed_rows) == 1 and ended.result.weights_sha256 == undisturbed.result.weights_sha256


def test_a_worker_of_another_kernel_is_refused_and_the_others_go_on(tmp_path: Path, undisturbed: agent.RunEnded) -> None:
    ended, events = run_once(make_order(tmp_path, workers=3), tmp_path, environments={0: ANOTHER_KERNEL})
    assert ended.result.weights_sha256 == undisturbed.result.weights_sha256 and len(ended.computed_rows) == 2
    assert events[0].notice.reason == "NODE_FINGERPRINT_DIFFERS"
    assert undisturbed.result.fingerprint in events[0].notice.text and "worker 0" in events[0].notice.text


def test_portable_workers_under_unlike_variables_share_a_job(tmp_path: Path) -> None:
    environments = {0: {"OPENBLAS_CORETYPE": "SkylakeX"}, 1: ANOTHER_KERNEL, 2: {"NPY_ENABLE_CPU_FEATURES": "X86_V3"}}
    made = set()
    for workers in (1, 3):
        files = tmp_path / str(workers)
        group = partial(LocalGroup, PORTABLE_WORKER, environments)
        ended, events = run_once(make_order(files, workers=workers), files, make_group=group)
        assert len(ended.computed_rows) == workers and "notice" not in kinds(events)
        made.add((ended.result.weights_sha256, ended.result.fingerprint))
    assert len(made) == 1


def test_without_a_fitting_node_the_run_waits_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RETRY_S", 0.0)
    order = make_order(tmp_path)
    order.fingerprint = "f0" * 32
    wanted = Wanted()

    def give_up() -> None:
        wanted.cancel = wanted.waits == 2

    wanted.on_wait = give_up
    ended, events = run_once(order, tmp_path, wanted)
    assert ended.outcome == agent.RunEnded.CANCELLED and wanted.waits == 2
    assert kinds(events) == ["notice", "recovering"]
    assert order.fingerprint in events[1].recovering.reason and "0 of 1 workers" in events[1].recovering.reason


def test_numbers_that_are_not_finite_fail_the_job_and_are_never_committed(tmp_path: Path) -> None:
    ended, events = run_once(make_order(tmp_path, learning_rate=1e30, checkpoint_steps=1, epochs=20), tmp_path)
    assert ended.outcome == agent.RunEnded.FAILED and "step" in ended.reason
    kept = f"the checkpoint of step {ended.result.step} is kept" if ended.HasField("result") else "it has no checkpoint yet"
    assert ended.reason.endswith(kept)
    assert "NON_FINITE" in {event.notice.reason for event in events}
    assert all(weights_finite(folder) for folder in folders(tmp_path))


def weights_finite(folder: Path) -> bool:
    """Whether a checkpoint's weights are numbers."""
    import numpy as np
    from safetensors.numpy import load_file

    return all(np.isfinite(values).all() for values in load_file(folder / MODEL_FILE).values())


def test_a_checkpoint_without_space_is_put_off_and_the_last_one_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: agent.RunEnded
) -> None:
    wanted, real = Wanted(), checkpoint_folder.write_folder

    def full(*arguments: Any) -> Any:
        if wanted.waits < 2:
            raise NoSpace("the disk is full")
        return real(*arguments)

    monkeypatch.setattr("coordinator.checkpoints.write_folder", full)
    ended, events = run_once(make_order(tmp_path, checkpoint_steps=4), tmp_path, wanted)
    assert ended.result.weights_sha256 == undisturbed.result.weights_sha256
    assert kinds(events).count("notice") == 2 and kinds(events).count("recovering") == 1  # one a kind, not one a try
    deferred = [event.notice for event in events if event.WhichOneof("event") == "notice"]
    assert {notice.reason for notice in deferred} == {"CHECKPOINT_DEFERRED"} and "disk is full" in deferred[0].text
