"""The command line: what goes to stdout, what to stderr, and the exit code."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from lockstep.cli.submission import shards_text
from lockstep.contract.errors import UserError, Violation
from lockstep.v1 import cluster_service_pb2, training_job_pb2
from tests.client.commands import Lockstep, a_run
from tests.client.fake_server import TOKEN, FakeServer, State, WatchStep, state_event
from tests.client.specs import DIGITS

# submit, plan


def test_submit(lockstep: Lockstep, job_file: Path) -> None:
    done = lockstep("submit", str(job_file))
    assert done.code == 0
    assert done.out == "jobs/digits-mlp-7f3a\n"
    assert done.err == "note: workers.max is capped at 4\nwatch it with: lockstep watch digits-mlp-7f3a\n"


def test_submit_as_json(lockstep: Lockstep, job_file: Path) -> None:
    done = lockstep("submit", "--json", str(job_file))
    (job,) = done.objects()
    assert job["name"] == "jobs/digits-mlp-7f3a"
    assert job["spec"]["training"] == {"epochs": 20, "batch_size": 128, "seed": "7"}


def test_a_job_shown_as_json_can_be_submitted_again(lockstep: Lockstep, server: FakeServer, job_file: Path) -> None:
    lockstep("submit", str(job_file))
    (job,) = lockstep("show", "--json", "digits-mlp-7f3a").objects()
    (job_file.parent / "again.json").write_text(json.dumps(job["spec"]))
    assert lockstep("submit", "again.json").code == 0
    first, last = server.requests[0], server.requests[-1]
    assert first.training_job.spec == last.training_job.spec


@pytest.mark.parametrize(("end", "code"), [(State.SUCCEEDED, 0), (State.FAILED, 1), (State.CANCELLED, 1)])
def test_submit_and_watch(lockstep: Lockstep, server: FakeServer, job_file: Path, end: int, code: int) -> None:
    server.watches.append(a_run(end, "worker 1, step 36: out of memory" if end == State.FAILED else ""))
    done = lockstep("submit", "--watch", str(job_file))
    assert done.code == code
    why = ": worker 1, step 36: out of memory" if end == State.FAILED else ""
    name = State.Name(end)  # type: ignore[arg-type]
    assert done.out.splitlines() == [
        "jobs/digits-mlp-7f3a",
        "RUNNING",
        "step 36/240, epoch 3, loss 0.25, validation accuracy 95.00 %, 12,346 samples/s, 2 workers, 1 min 15 s left",
        "step 36: validation loss not a number, validation accuracy 96.11 %",
        f"jobs/digits-mlp-7f3a  {name}{why}",
    ]


@pytest.mark.parametrize(("end", "code"), [(State.SUCCEEDED, 0), (State.CANCELLED, 1)])
def test_a_job_that_is_deleted_as_soon_as_it_has_ended(
    lockstep: Lockstep, server: FakeServer, monkeypatch: pytest.MonkeyPatch, end: int, code: int
) -> None:
    server.add_job("gone", State.RUNNING)
    server.watches.append([state_event(1, end)])

    def get(*_: object) -> None:
        raise UserError.of("name", "jobs/gone", "there is no such job", "JOB_NOT_FOUND")

    monkeypatch.setattr("lockstep.client.Client.get", get)
    name = State.Name(end)  # type: ignore[arg-type]
    assert lockstep("watch", "gone") == (code, f"jobs/gone  {name}\n", "jobs/gone was deleted after its end\n")


def test_submit_and_watch_as_json_ends_with_the_finished_job(lockstep: Lockstep, server: FakeServer, job_file: Path) -> None:
    server.watches.append(a_run(State.SUCCEEDED))
    objects = lockstep("submit", "--watch", "--json", str(job_file)).objects()
    assert len(objects) == 6
    assert [event["number"] for event in objects[1:-1]] == ["1", "2", "3", "4"]
    assert objects[3]["points"]["points"][1] == {"name": "validation_loss", "value": "NaN"}
    assert objects[-1]["state"] == "SUCCEEDED"


def test_a_dry_run_stores_nothing(lockstep: Lockstep, server: FakeServer, job_file: Path) -> None:
    done = lockstep("submit", "--dry-run", str(job_file))
    assert (done.code, server.jobs) == (0, {})
    assert "nothing was stored" in done.err
    assert "steps" in done.out
    assert lockstep("submit", "--dry-run", "--watch", str(job_file)).code == 2


def test_plan(lockstep: Lockstep, job_file: Path) -> None:
    done = lockstep("plan", str(job_file))
    assert (done.code, done.err) == (0, "note: a short batch\n")
    assert "rows        1,438 train, 359 validate" in done.out
    assert "0.dense  128     8,320" in done.out
    assert lockstep("plan", "--json", str(job_file)).objects()[0]["plan"]["total_steps"] == "240"


def test_a_bad_file_is_told_whole_and_nothing_is_stored(lockstep: Lockstep, server: FakeServer, job_file: Path) -> None:
    job_file.write_text(DIGITS.replace("0.05", "-0.1").replace("units: 10", "unit: 10"))
    done = lockstep("submit", str(job_file))
    assert (done.code, done.out, server.requests) == (2, "", [])
    assert done.err.splitlines() == [
        f"error: {job_file}:8:15: model.layers[2].dense.unit: there is no such key; did you mean units?",
        f"error: {job_file}:10:39: optimizer.momentum.learning_rate: got -0.1; it must be above 0",
    ]


def test_what_the_server_refuses_has_its_place_in_the_file(lockstep: Lockstep, server: FakeServer, job_file: Path) -> None:
    violation = Violation("model.layers[2].dense", "10 outputs", "datasets/digits has 12 classes", "OUTPUTS")
    server.refusal = UserError([violation])
    done = lockstep("submit", str(job_file))
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {job_file}:8:14: model.layers[2].dense: got 10 outputs; datasets/digits has 12 classes\n"


# jobs


def test_jobs(lockstep: Lockstep, server: FakeServer) -> None:
    assert lockstep("jobs") == (0, "", "no jobs\n")
    for name in "abc":
        server.add_job(name).progress.loss = math.nan
    done = lockstep("jobs", "--state", "queued")
    assert done.out.splitlines()[0].split() == ["JOB", "STATE", "STEP", "LOSS", "ACCURACY", "CREATED", "DETAIL"]
    assert done.out.splitlines()[1] == "a    QUEUED  0/0   not a number            1970-01-01 00:16:40Z"
    assert server.requests[-1].filter == "state = QUEUED"
    assert [job["name"] for job in lockstep("jobs", "--json").objects()] == ["jobs/a", "jobs/b", "jobs/c"]
    done = lockstep("jobs", "--limit", "2")
    assert (len(done.out.splitlines()), done.err) == (3, "the newest 2 are shown; --limit 0 shows all\n")


def test_show_begins_with_who_and_why(lockstep: Lockstep, server: FakeServer) -> None:
    job = server.add_job("a", State.FAILED)
    job.status_detail = "worker 1 (node b), step 812: out of memory\x1b[31m; use a smaller batch"
    job.result.step = 800
    job.result.loss = math.inf
    job.runs.add(run_number=1, workers=2, start_step=0, last_step=812, end_reason="worker 1 was lost")
    job.result.checkpoints.add(step=800, size_bytes=2048, weights_sha256="ab" * 32, best=True)
    done = lockstep("show", "a")
    lines = done.out.splitlines()
    assert lines[0] == "jobs/a  FAILED: worker 1 (node b), step 812: out of memory\ufffd[31m; use a smaller batch"
    assert any(line.startswith("result") and line.endswith("step 800, loss infinite") for line in lines)
    assert any("1 to 812  worker 1 was lost" in line for line in lines)
    assert any("step 800" in line and "2.0 KiB" in line and "best" in line for line in lines)


def test_show_has_the_metrics_and_a_table_of_the_classes(lockstep: Lockstep, server: FakeServer) -> None:
    job = server.add_job("a", State.SUCCEEDED)
    job.result.validation_metrics.precision = 0.75
    job.result.validation_metrics.class_1_f1 = 0.5
    job.result.validation_metrics.auc = 0.98765
    job.result.validation_classes.add(label=0, name="cat", support=1234, predicted=1240, correct=1230, recall=0.9968, f1=0.9943)
    job.result.validation_classes.add(label=1, support=0, predicted=0, correct=0)
    lines = lockstep("show", "a").out.splitlines()
    assert "validation  precision 75.00 %, F1 of class 1 0.5, ROC AUC 0.9877" in lines
    assert "result      ROC AUC 0.9877" in lines
    assert [line.split() for line in lines[-3:]] == [
        ["CLASS", "SUPPORT", "PRECISION", "RECALL", "F1"],
        ["cat", "1,234", "-", "99.68", "%", "0.9943"],
        ["1", "0", "-", "-", "-"],
    ]
    shown = lockstep("show", "a", "--json").objects()[0]["result"]
    assert shown["validation_metrics"] == {"precision": 0.75, "class_1_f1": 0.5, "auc": 0.98765}
    assert "precision" not in shown["validation_classes"][1]
    job = server.add_job("b", State.RUNNING)
    job.progress.validation_metrics.r2 = -0.25
    assert "validation  R2 -0.25" in lockstep("show", "b").out


def test_an_ended_job_has_no_time_left(lockstep: Lockstep, server: FakeServer) -> None:
    job = server.add_job("late", State.RUNNING)
    job.progress.step, job.progress.remaining_seconds = 3, 75
    assert "1 min 15 s left" in lockstep("show", "late").out
    for state in (State.PAUSED, State.RECOVERING, State.QUEUED, State.FAILED):
        job.state = state
        assert " left" not in lockstep("show", "late").out


def test_show_has_the_workers_of_each_run_and_the_bounds(lockstep: Lockstep, server: FakeServer) -> None:
    job = server.add_job("a", State.RUNNING)
    job.spec.workers.min, job.spec.workers.max = 1, 4
    for number, (most, last, ended) in enumerate([(2, 2, True), (4, 1, True), (4, 3, False)], start=1):
        run = job.runs.add(run_number=number, workers=most, members=[training_job_pb2.WorkerInfo() for _ in range(last)])
        run.start_time.seconds = 1000
        if ended:
            run.end_time.seconds = 2000
    lines = lockstep("show", "a").out.splitlines()
    assert any(line.startswith("workers ") and line.endswith("at least 1, at most 4") for line in lines)
    assert [line[5:12].strip() for line in lines if line[:1] in "123" and line] == ["2", "up to 4", "3"]


def test_a_long_detail_is_cut_with_a_mark(lockstep: Lockstep, server: FakeServer) -> None:
    server.add_job("a", State.FAILED).status_detail = "x" * 100
    server.add_job("b", State.FAILED).status_detail = "x" * 101
    ends = [line.split()[-1] for line in lockstep("jobs").out.splitlines()[1:]]
    assert ends == ["x" * 100, "x" * 97 + "..."]


def test_a_failure_is_told_once(lockstep: Lockstep, server: FakeServer, job_file: Path) -> None:
    why = "worker 1, step 36: out of memory"
    said = training_job_pb2.Notice(severity=training_job_pb2.Notice.ERROR, text=why)
    other = training_job_pb2.Notice(severity=training_job_pb2.Notice.ERROR, text="the disk is full")
    notices = [training_job_pb2.JobEvent(number=number, notice=notice) for number, notice in ((2, other), (3, said))]
    end = state_event(4, State.FAILED, f"{why}; nothing is kept")
    server.watches.append([state_event(1, State.RUNNING), *notices, end])
    assert lockstep("submit", "--watch", str(job_file)).out.splitlines() == [
        "jobs/digits-mlp-7f3a",
        "RUNNING",
        "error: the disk is full",
        f"jobs/digits-mlp-7f3a  FAILED: {why}; nothing is kept",
    ]


def test_steering(lockstep: Lockstep, server: FakeServer) -> None:
    server.add_job("a", State.RUNNING)
    assert lockstep("cancel", "a") == (0, "jobs/a  CANCELLING\n", "")
    assert lockstep("delete", "a") == (0, "", "deleted jobs/a\n")
    done = lockstep("delete", "a", "--json")
    assert (done.code, done.out, done.err) == (2, "", "error: name: there is no job jobs/a\n")


def test_pause_and_resume(lockstep: Lockstep, server: FakeServer) -> None:
    job = server.add_job("a", State.RUNNING)
    hint = "go on with: lockstep wait a --for PAUSED && lockstep resume a\n"
    assert lockstep("pause", "a") == (0, "jobs/a  PAUSING\n", hint)
    assert lockstep("resume", "a").code == 2
    job.state = State.PAUSED
    assert lockstep("pause", "a") == (0, "jobs/a  PAUSED\n", "go on with: lockstep resume a\n")
    assert lockstep("pause", "a", "--json").objects()[0]["state"] == "PAUSED"
    assert lockstep("resume", "a") == (0, "jobs/a  QUEUED\n", "")
    refused = "error: name: a job that is QUEUED cannot be resumed; nothing was changed\n"
    assert lockstep("resume", "a") == (2, "", refused)
    job.state = State.PAUSED
    done = lockstep("resume", "a", "--min", "2", "--max", "3")
    assert done == (0, "jobs/a  QUEUED\n", "workers: at least 2, at most 3\n")


def test_scale(lockstep: Lockstep, server: FakeServer) -> None:
    server.add_job("a", State.RUNNING)
    assert lockstep("scale", "a").code == 2
    assert lockstep("scale", "a", "--max", "3", "--json").objects()[0]["spec"]["workers"] == {"max": 3}
    assert lockstep("scale", "a", "--min", "2") == (0, "jobs/a  RUNNING\n", "workers: at least 2, at most 3\n")
    capped = "workers: at least 2, at most 4\nworkers.max is 4, not as asked: a mini-batch has 4 shards\n"
    assert lockstep("scale", "a", "--max", "9") == (0, "jobs/a  RUNNING\n", capped)
    assert lockstep("scale", "a", "--max", "65").code == 2


def test_wait(lockstep: Lockstep, server: FakeServer) -> None:
    job = server.add_job("a", State.SUCCEEDED)
    assert lockstep("wait", "a") == (0, "jobs/a  SUCCEEDED\n", "")
    assert lockstep("wait", "a", "--for", "succeeded").code == 0
    never = "error: jobs/a: it has ended and is SUCCEEDED, not PAUSED\n"
    assert lockstep("wait", "a", "--for", "PAUSED") == (1, "jobs/a  SUCCEEDED\n", never)
    job.state = State.FAILED
    assert lockstep("wait", "a", "--json").code == 1
    assert lockstep("wait", "a", "--for", "failed").code == 0
    job.state = State.RUNNING
    assert lockstep("wait", "a", "--timeout", "0.2") == (
        1,
        "",
        "error: jobs/a: it is still RUNNING after 0.2 s; it goes on\n",
    )
    job.state = State.PAUSED
    resting = "error: jobs/a: it is still PAUSED after 0.2 s; `lockstep resume a` lets it go on\n"
    assert lockstep("wait", "a", "--for", "RUNNING", "--timeout", "0.2") == (1, "", resting)


def test_watch_after_a_number(lockstep: Lockstep, server: FakeServer) -> None:
    server.add_job("a")
    server.watches.append([state_event(8, State.SUCCEEDED)])
    assert [event["number"] for event in lockstep("watch", "a", "--after", "7", "--json").objects()] == ["8"]
    assert server.requests[0].after_number == 7


def test_ctrl_c_detaches(server: FakeServer, tmp_path: Path) -> None:
    server.add_job("a")
    release = threading.Event()

    class Held(list[WatchStep]):
        def __iter__(self) -> Any:
            yield state_event(1, State.RUNNING)
            release.wait(30)

    server.watches.append(Held())
    (tmp_path / "token").write_text(TOKEN)
    command = [sys.executable, "-c", "from lockstep.cli import main; main()", "--server", server.address]
    process = subprocess.Popen(
        [*command, "--token-file", str(tmp_path / "token"), "watch", "a"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background may ignore it
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "RUNNING\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        release.set()
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err == "\nno longer watching; the job goes on. Come back with: lockstep watch a\n"
    assert server.jobs["jobs/a"].state == State.RUNNING


# datasets, models, cluster, version


def test_datasets(lockstep: Lockstep, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "Iris 2.csv").write_text("a,species\n1,x\n")
    done = lockstep("dataset", "push", "Iris 2.csv", "--label", "species")
    assert (done.code, done.out) == (0, "datasets/iris-2\n")
    assert done.err == "3 rows, inputs , 2 classes, 0 B\nnote: the column width is constant\n"
    assert (
        lockstep("dataset", "push", "iris", "Iris 2.csv", "--label", "species", "--json").objects()[0]["name"]
        == "datasets/iris"
    )
    assert [line.split()[0] for line in lockstep("dataset", "list").out.splitlines()] == ["DATASET", "iris-2", "iris"]
    assert len(lockstep("dataset", "list", "--json").objects()) == 2
    assert lockstep("dataset", "show", "iris").out.startswith("datasets/iris  READY\n")
    classes = server.datasets["datasets/iris"].schema.classes
    classes.positions, classes.no_label = 128, -100
    assert "2 classes at each of 128 positions (-100 where there is none)" in lockstep("dataset", "show", "iris").out
    server.datasets["datasets/iris"].schema.numbers.width = 1
    assert "inputs , a number to predict, 0 B" in lockstep("dataset", "show", "iris").out
    assert lockstep("dataset", "delete", "iris") == (0, "", "deleted datasets/iris\n")
    done = lockstep("dataset", "push", "Iris 2.csv", "iris")
    assert done.code == 2
    assert "NAME comes before FILE" in done.err
    assert lockstep("dataset", "push", "a", "b", "c.csv").code == 2
    assert lockstep("dataset", "push", "missing.npz").err.startswith("error: missing.npz: it cannot be read")


def test_model_pull(lockstep: Lockstep, server: FakeServer, tmp_path: Path) -> None:
    server.add_job("a")
    done = lockstep("model", "pull", "jobs/a")
    assert (done.code, done.out) == (0, "a/model.safetensors\na/manifest.json\n")
    assert "(checked)" in done.err
    assert (tmp_path / "a" / "manifest.json").exists()
    (told,) = lockstep("model", "pull", "a", "b", "--json").objects()
    assert (told["folder"], told["manifest"]["step"]) == ("b", 240)


def test_a_damaged_model_is_the_services_fault(lockstep: Lockstep, server: FakeServer) -> None:
    server.add_job("a")
    server.download = lambda: iter(())
    done = lockstep("model", "pull", "a")
    assert (done.code, done.out) == (3, "")
    assert "the download is damaged" in done.err


def test_cluster_and_version(lockstep: Lockstep, server: FakeServer) -> None:
    assert "agent   connected" in lockstep("cluster").out
    assert lockstep("cluster", "--json").objects()[0]["slots"] == 2
    agent = cluster_service_pb2.Cluster(server_version="0.1.0", slots=2, slots_in_use=1, agent_connected=True)
    server.cluster = agent
    assert "slots   1 of 2 in use" in lockstep("cluster").out
    agent.agent_connected, agent.slots, agent.slots_in_use = False, 0, 2
    away = lockstep("cluster").out
    assert "agent   none has connected since the server started" in away
    assert "slots   2 in use; how many there are is known when the agent is there" in away
    agent.agent_since.seconds = 1000
    assert "agent   away since 1970-01-01 00:16:40Z" in lockstep("cluster").out
    assert lockstep("version").out == "client  0.1.0\nserver  0.1.0\n"
    assert lockstep("version", "--json").objects() == [{"client_version": "0.1.0", "server_version": "0.1.0"}]
    assert lockstep("--version").out == "0.1.0\n"


def test_explain(lockstep: Lockstep) -> None:
    done = lockstep("explain", "optimizer.momentum.learning_rate")
    assert (done.code, done.out) == (0, "optimizer.momentum.learning_rate: real number, required, above 0\n")
    assert "units" in lockstep("explain", "model.layers[0].dense").out
    assert lockstep("explain", "model.layers.relu").out.endswith("It has no fields: write {}.\n")
    assert "validation_fraction" in lockstep("explain").out
    (told,) = lockstep("explain", "training.epochs", "--json").objects()
    assert (told["type"], told["required"], told["lte"]) == ("whole number", True, 1_000_000)
    assert lockstep("explain", "training.epoch").err == "error: training.epoch: there is no such field; did you mean epochs?\n"
    assert "optimizer.sgd.learning_rate" in lockstep("explain", "learning_rate").err


def test_shards_that_get_no_rows_are_said() -> None:
    assert shards_text(training_job_pb2.Plan(shards=4, filled_shards=4)) == "4"
    assert shards_text(training_job_pb2.Plan(shards=8, filled_shards=2)) == "8, of which a mini-batch fills 2"
