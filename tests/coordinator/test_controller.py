"""The controller: closed forms, and a run that goes on from any checkpoint or dropped evaluation at exactly the same rates."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.controller import Controller
from lockstep.contract.manifest import Manifest
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1.optimization_pb2 import PlateauSchedule as PlateauMessage
from lockstep.v1.optimization_pb2 import Schedule
from tests.coordinator.in_memory import InMemoryGroup
from tests.coordinator.one_run import Wanted, curve, run_once
from tests.coordinator.small_job import make_order
from worker.specs import ConstantSchedule, PlateauSchedule, ScheduleRecord

pytestmark = pytest.mark.timeout(60)

NAN, INF = math.nan, math.inf
MANIFEST = Manifest(
    job_id="a-1",
    run_number=1,
    step=30,
    epoch=3,
    arithmetic_digest="a" * 64,
    arithmetic_version=1,
    dataset_digest="d" * 64,
    fingerprint="f" * 64,
    weights_sha256="b" * 64,
    files={},
    spec={},
    input_shape=[8],
    create_time="2026-11-25T00:00:00Z",
)


def factors(schedule: ScheduleRecord, losses: list[float]) -> list[float]:
    """The factor after each of these evaluations, at steps 10, 20, ..."""
    controller, found = Controller(schedule), []
    for number, loss in enumerate(losses, 1):
        controller = controller.after(10 * number, loss)
        found.append(controller.rate_factor)
    return found


def test_the_factor_falls_after_patience_evaluations_without_a_lower_loss() -> None:
    assert factors(PlateauSchedule(0.5, 2), [3, 2, 2, 2, 2, 2, 1, 1, 1]) == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]
    assert factors(PlateauSchedule(0.1, 1), [1, 1, 1, 0.5, 1]) == [1, 0.1, 0.1 * 0.1, 0.1 * 0.1, 0.1 * 0.1 * 0.1]
    assert factors(PlateauSchedule(0.1, 3), [2, 3, 3, 1.9, 3, 3, 3]) == [1, 1, 1, 1, 1, 1, 0.1]


def test_nan_is_never_lower_and_anything_is_lower_than_it() -> None:
    assert factors(PlateauSchedule(0.5, 2), [NAN, NAN, INF, INF, INF, 7, NAN, NAN]) == [
        1,
        0.5,
        0.5,
        0.5,
        0.25,
        0.25,
        0.25,
        0.125,
    ]
    controller = Controller(PlateauSchedule(0.5, 2)).after(10, NAN)
    assert controller.best is None and controller.seen_step == 10


def test_evaluations_of_the_warm_up_set_the_lowest_and_are_not_counted() -> None:
    assert factors(PlateauSchedule(0.5, 2, 30), [1, 2, 2, 2, 2]) == [1, 1, 1, 1, 0.5]


def test_other_schedules_remember_the_best_alone() -> None:
    assert factors(ConstantSchedule(), [1, 2, 2, 2, 2]) == [1] * 5
    controller = Controller(ConstantSchedule()).after(10, 2.0).after(20, 1.0).after(30, 1.0)
    assert (controller.best, controller.seen_step) == ((1.0, 20), 30)


LOSSES = st.lists(st.one_of(st.sampled_from([0.5, 1.0, 2.0]), st.floats()), max_size=30)


@given(LOSSES, LOSSES, st.floats(1e-3, 0.999), st.integers(1, 4), st.integers(0, 200))
def test_one_restored_from_json_goes_on_as_the_one_that_was_kept(
    before: list[float], after: list[float], factor: float, patience: int, warmup: int
) -> None:
    schedule = PlateauSchedule(factor, patience, warmup)
    kept = Controller(schedule)
    for number, loss in enumerate(before, 1):
        kept = kept.after(10 * number, loss)
    text = replace(MANIFEST, **kept.recorded()).to_json()
    assert json.loads(text, parse_constant=pytest.fail)
    restored = Controller.restored(schedule, Manifest.from_json(text))
    assert restored == kept
    for number, loss in enumerate(after, len(before) + 1):
        kept, restored = kept.after(10 * number, loss), restored.after(10 * number, loss)
        assert restored == kept


def test_a_manifest_without_a_controller_still_loads() -> None:
    old = replace(MANIFEST, validation_loss=0.5, best_validation_loss=0.25, best_step=20)
    restored = Controller.restored(ConstantSchedule(), Manifest.from_json(old.to_json()))
    assert restored == Controller(ConstantSchedule(), seen_step=30, best=(0.25, 20))
    assert Controller.restored(ConstantSchedule(), MANIFEST) == Controller(ConstantSchedule())


# A run: 18 steps, 3 an epoch; evaluations at even steps, their losses a script; a warm-up of 3 steps, patience 2.

SCRIPT = {2: 1.0, 4: 2.0, 6: 1.0, 8: 0.9, 10: NAN, 12: 0.9, 14: 1.0, 16: 1.0, 18: 1.0}
FACTOR, RATE, WARMUP = 0.3, 0.05, 3

Points = dict[tuple[int, str], float]
Whole = tuple[Path, agent.RunEnded, Points]


def order_of(files: Path, run_number: int = 1) -> agent.RunOrder:
    order = make_order(
        files,
        epochs=6,
        learning_rate=RATE,
        evaluation_steps=2,
        checkpoint_steps=1,
        run_number=run_number,
        schedule=Schedule(plateau=PlateauMessage(factor=FACTOR, patience=2), warmup_steps=WARMUP),
    )
    order.spec.checkpoints.keep = 100
    return order


def rates(points: Points) -> dict[int, float]:
    return {step: value for (step, name), value in points.items() if name == "learning_rate"}


def exactly(points: Points) -> object:
    """Equal to these points alone, NaN to NaN."""
    return pytest.approx(points, abs=0, rel=0, nan_ok=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run from start to end, with a checkpoint at each step."""
    files = tmp_path_factory.mktemp("whole")
    ended, events = run_once(order_of(files), files, make_group=lambda: InMemoryGroup(SCRIPT.__getitem__))
    assert ended.outcome == agent.RunEnded.SUCCEEDED, ended.reason
    return files, ended, curve(events)


def manifest_of(files: Path, step: int) -> Manifest:
    (folder,) = (files / "checkpoints" / "small-0001").glob(f"{step}-*")
    return Manifest.from_json((folder / "manifest.json").read_text())


def test_the_rates_are_those_of_the_definition(whole: Whole) -> None:
    warming = {step: RATE * (step / WARMUP) for step in (1, 2, 3)}
    falls = dict.fromkeys(range(4, 7), RATE * 1.0)  # 2.0 and 1.0 at steps 4 and 6 are not below 1.0
    first = dict.fromkeys(range(7, 13), RATE * FACTOR)  # NaN and 0.9 at steps 10 and 12 are not below 0.9
    second = dict.fromkeys(range(13, 17), RATE * (FACTOR * FACTOR))
    third = dict.fromkeys((17, 18), RATE * (FACTOR * FACTOR * FACTOR))
    assert rates(whole[2]) == {**warming, **falls, **first, **second, **third}


def test_the_checkpoint_of_an_evaluated_step_holds_what_came_of_it(whole: Whole) -> None:
    skipped = {"skipped_steps": 0, "skipped_in_a_row": 0}
    assert manifest_of(whole[0], 6).controller == {"seen_step": 6, "without_improvement": 0, "rate_factor": FACTOR} | skipped
    assert manifest_of(whole[0], 5).controller == {"seen_step": 4, "without_improvement": 1, "rate_factor": 1.0} | skipped


@pytest.mark.parametrize("step", [1, 3, 4, 5, 6, 7, 10, 11, 12, 17])
def test_a_run_from_any_checkpoint_has_the_same_rates_and_weights(tmp_path: Path, whole: Whole, step: int) -> None:
    files, ended, points = whole
    shutil.copytree(files / "datasets", tmp_path / "datasets")
    (folder,) = (files / "checkpoints" / "small-0001").glob(f"{step}-*")
    shutil.copytree(folder, tmp_path / "checkpoints" / "small-0001" / folder.name)
    group = InMemoryGroup(SCRIPT.__getitem__)
    again, events = run_once(order_of(tmp_path, 2), tmp_path, make_group=lambda: group)
    assert curve(events) == pytest.approx(
        {key: value for key, value in points.items() if key[0] > step}, abs=0, rel=0, nan_ok=True
    )
    assert again.result.weights_sha256 == ended.result.weights_sha256
    assert group.evaluated == [due for due in SCRIPT if due > step]


@pytest.mark.parametrize("step", [2, 6, 12])
def test_an_evaluation_that_a_pause_drops_is_made_up_by_the_next_run(tmp_path: Path, whole: Whole, step: int) -> None:
    wanted = Wanted()

    def pause_at(evaluated: int) -> None:
        wanted.pause = evaluated == step

    paused, first = run_once(
        order_of(tmp_path), tmp_path, wanted, make_group=lambda: InMemoryGroup(SCRIPT.__getitem__, pause_at)
    )
    assert (paused.outcome, paused.last_step, paused.result.step) == (agent.RunEnded.PAUSED, step, step)
    dropped = manifest_of(tmp_path, step)
    assert dropped.validation_loss is None and dropped.controller["seen_step"] == step - 2
    # Paused again before the evaluation that is due is through, then left alone.
    wanted.pause = False
    again, nothing = run_once(
        order_of(tmp_path, 2), tmp_path, wanted, make_group=lambda: InMemoryGroup(SCRIPT.__getitem__, pause_at)
    )
    assert (again.outcome, again.last_step, curve(nothing)) == (agent.RunEnded.PAUSED, step, {})
    group = InMemoryGroup(SCRIPT.__getitem__)
    ended, second = run_once(order_of(tmp_path, 3), tmp_path, make_group=lambda: group)
    assert group.evaluated[0] == step
    assert exactly(whole[2]) == curve(first + second)
    assert ended.result.weights_sha256 == whole[1].result.weights_sha256


def test_the_evaluation_of_the_last_step_is_never_dropped(tmp_path: Path) -> None:
    wanted = Wanted()

    def pause_at(evaluated: int) -> None:
        wanted.pause = evaluated == 18

    ended, _ = run_once(order_of(tmp_path), tmp_path, wanted, make_group=lambda: InMemoryGroup(SCRIPT.__getitem__, pause_at))
    assert ended.outcome == agent.RunEnded.SUCCEEDED and ended.result.validation_loss == 1.0
    assert manifest_of(tmp_path, 18).controller["seen_step"] == 18


def test_a_cancel_in_an_evaluation_cancels(tmp_path: Path) -> None:
    wanted = Wanted()

    def cancel_at(evaluated: int) -> None:
        wanted.cancel = evaluated == 4

    ended, _ = run_once(order_of(tmp_path), tmp_path, wanted, make_group=lambda: InMemoryGroup(SCRIPT.__getitem__, cancel_at))
    assert (ended.outcome, ended.last_step) == (agent.RunEnded.CANCELLED, 4)
