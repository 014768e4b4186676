"""The benchmark of the engine, without its peer: every case can be run, and what is below a floor is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.engine.cases import BY_NAME, CASES, Case
from benchmarks.engine.ours import Ours, job, write_start, write_table
from benchmarks.engine.race import LOSS_STEPS, Outcome
from lockstep.contract.arithmetic import default_shards
from worker.nn.shapes import parameter_layout
from worker.specs import architecture


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_a_job(case: Case) -> None:
    layout = parameter_layout(architecture(job(case, 1).model, case.input_shape))
    assert layout.size > 0
    assert case.rows >= case.batch * (LOSS_STEPS + 1) and case.rows % case.batch == 0  # the losses are of one epoch


def test_the_worker_takes_the_steps_that_are_asked(tmp_path: Path) -> None:
    case = BY_NAME["784-128-10"]
    digest = write_table(case, tmp_path)
    write_start(case, tmp_path)
    curves = []
    for shards in (1, default_shards(case.batch)):
        ours = Ours(case, tmp_path, digest, shards)
        first = [point.loss for point in ours.run(LOSS_STEPS).losses]
        ours.run(3)
        ours.restart()
        assert [point.loss for point in ours.run(LOSS_STEPS).losses] == first and len(first) == LOSS_STEPS
        for _ in range(20):
            last = ours.run(LOSS_STEPS).losses[-1].loss
        assert last < first[0] / 2  # it learns
        curves.append(first)
        ours.close()
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def outcome(**steps_s: float) -> Outcome:
    case = BY_NAME["784-2048-2048-2048-10"]
    made = Outcome(case, {"one": 1, "default": 8}, "contiguous, to none")
    made.step_s = {side: [seconds] * 3 for side, seconds in steps_s.items()}
    made.peak_flops = [case.product_flops / 0.9 / steps_s["one"]] * 3
    made.losses = {"one": [2.0, 1.0], "default": [2.0, 1.0], "torch": [2.0, 1.0005]}
    made.memory_bytes = {"one": 80, "default": 85, "torch": 100}
    return made


def test_what_is_below_its_floor_is_named() -> None:
    assert outcome(one=1.0, default=1.2, torch=1.0).missed() == []
    slow = outcome(one=1.0, default=1.3, torch=0.99)
    assert [text.split(" 0.")[0] for text in slow.missed()] == ["speed in one shard", "speed"]
    wrong = outcome(one=1.0, default=1.2, torch=1.0)
    wrong.losses["torch"], wrong.memory_bytes["default"] = [2.0, float("nan")], 86
    wrong.peak_flops = [peak * 1.1 for peak in wrong.peak_flops]
    assert len(wrong.missed()) == 4  # the share, the memory of the default number of shards, and both losses
