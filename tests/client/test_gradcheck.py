"""`lockstep gradcheck`: the table on stdout, talk on stderr, and the exit code."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lockstep.contract.errors import UserError, Violation
from lockstep.v1 import training_job_pb2
from tests.client.commands import Lockstep
from tests.client.fake_server import FakeServer, State, WatchStep, state_event

WRONG = "the gradient of 2.dense.weight at [4, 1] is wrong"


def found(worst: float, deviation: float = 1.3e-7) -> training_job_pb2.Result:
    """A table of two tensors; the second has the worst error."""
    result = training_job_pb2.Result(fingerprint="f" * 64)
    check = result.gradient_check
    check.tolerance, check.float32_tolerance, check.rows, check.worst_relative_error = 1e-6, 1e-2, 16, worst
    check.tensors.add(
        name="0.dense.weight",
        shape=[64, 128],
        elements=8192,
        checked=48,
        skipped=2,
        worst_relative_error=1.234e-9,
        worst_index=[52, 71],
        backward=0.5,
        numerical=0.5,
        float32_deviation=1.3e-7,
    )
    check.tensors.add(
        name="2.dense.bias",
        shape=[10],
        elements=10,
        checked=10,
        worst_relative_error=worst,
        worst_index=[6],
        backward=2.0,
        numerical=1.0,
        float32_deviation=deviation,
    )
    return result


def a_check(end: int, detail: str = "") -> list[WatchStep]:
    progress = training_job_pb2.JobEvent(number=2)
    progress.progress.CopyFrom(training_job_pb2.Progress(step=1, total_steps=2, workers=1))
    return [state_event(1, State.RUNNING), progress, state_event(3, end, detail)]


def test_a_right_job(lockstep: Lockstep, server: FakeServer, job_file: Path) -> None:
    server.result = found(6e-10)
    server.watches.append(a_check(State.SUCCEEDED))
    done = lockstep("gradcheck", str(job_file))
    assert done.code == 0
    assert done.out.splitlines() == [
        "TENSOR          SHAPE     CHECKED                 WORST ERROR  AT      FLOAT32",
        "0.dense.weight  64 x 128  48 of 8,192, 2 skipped  1.2e-09      52, 71  1.3e-07",
        "2.dense.bias    10        10 of 10                6e-10        6       1.3e-07",
        "jobs/digits-mlp-7f3a  SUCCEEDED",
    ]
    assert done.err.splitlines() == [
        "jobs/digits-mlp-7f3a",
        "note: workers.max is capped at 4",
        "RUNNING",
        "step 1/2, 1 worker",
        "SUCCEEDED",
    ]
    sent = server.requests[0].training_job
    assert sent.kind == training_job_pb2.TrainingJob.GRADIENT_CHECK and sent.spec.training.batch_size == 128


@pytest.mark.parametrize(
    ("result", "cells"),
    [
        (found(0.5), ["0.5 *", "6", "1.3e-07"]),
        (found(math.nan), ["not a number *", "6", "1.3e-07"]),
        (found(1e-6), ["1e-06 *", "6", "1.3e-07"]),
        (found(1e-9, deviation=0.25), ["1e-09", "6", "0.25 *"]),
    ],
)
def test_what_is_wrong_is_marked_and_the_code_is_1(
    lockstep: Lockstep, server: FakeServer, job_file: Path, result: training_job_pb2.Result, cells: list[str]
) -> None:
    server.result = result
    server.watches.append(a_check(State.FAILED, WRONG))
    done = lockstep("gradcheck", str(job_file))
    assert done.code == 1
    *_, row, last = done.out.splitlines()
    assert [cell.strip() for cell in row.split("  ") if cell.strip()][-3:] == cells
    assert last == f"jobs/digits-mlp-7f3a  FAILED: {WRONG}"


def test_a_job_that_did_not_get_so_far_has_no_table(lockstep: Lockstep, server: FakeServer, job_file: Path) -> None:
    server.watches.append(a_check(State.CANCELLED, "cancelled at step 1"))
    done = lockstep("gradcheck", str(job_file))
    assert (done.code, done.out) == (1, "jobs/digits-mlp-7f3a  CANCELLED: cancelled at step 1\n")


@pytest.mark.parametrize(("worst", "end", "code"), [(6e-10, State.SUCCEEDED, 0), (math.nan, State.FAILED, 1)])
def test_as_json_it_is_the_finished_job(
    lockstep: Lockstep, server: FakeServer, job_file: Path, worst: float, end: int, code: int
) -> None:
    server.result = found(worst)
    server.watches.append(a_check(end))
    done = lockstep("gradcheck", "--json", str(job_file))
    (job,) = done.objects()
    assert (done.code, job["kind"]) == (code, "GRADIENT_CHECK")
    check = job["result"]["gradient_check"]
    assert check["worst_relative_error"] == ("NaN" if math.isnan(worst) else worst)
    assert check["tensors"][0]["worst_index"] == ["52", "71"] and check["tensors"][0]["checked"] == "48"
    assert "RUNNING" in done.err


def test_several_files_are_checked_one_after_the_other(lockstep: Lockstep, server: FakeServer, job_file: Path) -> None:
    other = job_file.with_name("other.yaml")
    other.write_text(job_file.read_text())
    server.result = found(6e-10)
    server.watches += [a_check(State.FAILED, WRONG), a_check(State.SUCCEEDED)]
    done = lockstep("gradcheck", job_file.name, other.name)
    assert done.code == 1
    first, second = done.out.split("\n\n")
    assert first.startswith("digits.yaml\nTENSOR") and first.endswith(f"jobs/digits-mlp-7f3a  FAILED: {WRONG}")
    assert second.startswith("other.yaml\nTENSOR") and second.endswith("jobs/digits-mlp-7f3a  SUCCEEDED\n")
    assert done.err.splitlines()[-1] == "1 of 2 passed, not: digits.yaml"
    server.watches += [a_check(State.SUCCEEDED), a_check(State.SUCCEEDED)]
    done = lockstep("gradcheck", "--json", job_file.name, other.name)
    assert (done.code, [job["kind"] for job in done.objects()]) == (0, ["GRADIENT_CHECK"] * 2)
    assert done.err.splitlines()[-1] == "2 of 2 passed"


def test_nothing_is_checked_where_one_of_several_files_is_wrong(
    lockstep: Lockstep, server: FakeServer, job_file: Path, tmp_path: Path
) -> None:
    bad = job_file.with_name("bad.yaml")
    bad.write_text(job_file.read_text().replace("units: 128", "units: -1"))
    done = lockstep("gradcheck", bad.name, job_file.name, "missing.yaml")
    assert (done.code, done.out) == (2, "") and not server.jobs
    wrong, missing = done.err.splitlines()
    assert wrong.startswith("error: bad.yaml:") and missing.startswith("error: missing.yaml: it cannot be read")
    (tmp_path / "token").write_text("wrong")
    done = lockstep("gradcheck", job_file.name, job_file.name)
    assert (done.code, len(done.err.splitlines())) == (2, 1)  # what is wrong with the server is said once


def test_show_and_watch_tell_it_too(lockstep: Lockstep, server: FakeServer) -> None:
    job = server.add_job("check-1", State.SUCCEEDED)
    job.kind, job.plan.total_steps, job.progress.step = training_job_pb2.TrainingJob.GRADIENT_CHECK, 2, 2
    job.result.CopyFrom(found(6e-10))
    shown = lockstep("show", "check-1").out
    assert "2.dense.bias    10        10 of 10                6e-10" in shown
    assert "step     2 of 2\n" in shown and "epoch" not in shown
    assert "2.dense.bias    10        10 of 10                6e-10" in lockstep("watch", "check-1").out


def test_what_is_asked_wrongly(lockstep: Lockstep, server: FakeServer, job_file: Path) -> None:
    assert lockstep("gradcheck").code == 2
    done = lockstep("gradcheck", "missing.yaml")
    assert (done.code, done.out) == (2, "") and "missing.yaml" in done.err
    server.refusal = UserError([Violation("model.layers", "", "no layer learns anything", "NOTHING_LEARNED")])
    done = lockstep("gradcheck", str(job_file))
    assert (done.code, done.out) == (2, "") and "digits.yaml:" in done.err and "no layer learns anything" in done.err
    job_file.write_text(job_file.read_text().replace("units: 128", "units: -1"))
    done = lockstep("gradcheck", str(job_file))
    assert done.code == 2 and "model.layers[0].dense.units" in done.err
