"""`lockstep verify` and `lockstep diff`: what goes to stdout, what to stderr, and the exit codes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from lockstep.comparison import HASHED_STEPS, Parting, Recorded, differences, find_parting, first_loss_apart
from lockstep.v1 import training_job_pb2
from lockstep.v1.training_job_pb2 import ReplayedStep
from tests.client.commands import Lockstep
from tests.client.fake_server import Event, FakeServer, State, WatchStep, state_event
from tests.client.specs import digits

RIGHT = "steps 4 to 6 replayed: the weights are those of the checkpoint of step 6"
WRONG = "the checkpoint of step 6 is not what the job computes"
LAST = 240


def found(held: str) -> training_job_pb2.Result:
    """A replay to step 6 whose checkpoint has the weights `held`."""
    result = training_job_pb2.Result(fingerprint="f" * 64)
    result.replay.start_step = 3
    result.replay.steps.add(
        step=6,
        weights_sha256="a" * 64,
        optimizer_sha256="b" * 64,
        checkpoint_weights_sha256=held,
        checkpoint_optimizer_sha256="b" * 64,
    )
    return result


def test_a_right_checkpoint(lockstep: Lockstep, server: FakeServer) -> None:
    server.add_job("a", State.SUCCEEDED)
    server.result = found("a" * 64)
    server.watches.append([state_event(1, State.RUNNING), state_event(2, State.SUCCEEDED, RIGHT)])
    done = lockstep("verify", "a", "--step", "6")
    assert done.code == 0
    assert done.out.splitlines() == [
        "STEP  REPLAYED      CHECKPOINT",
        "6     aaaaaaaaaaaa  aaaaaaaaaaaa  same",
        f"jobs/verify-1  SUCCEEDED: {RIGHT}",
    ]
    assert done.err.splitlines() == ["jobs/verify-1", "RUNNING", f"SUCCEEDED: {RIGHT}"]
    sent = server.requests[0].training_job
    assert (sent.kind, sent.replay.job, sent.replay.step) == (training_job_pb2.TrainingJob.VERIFY, "jobs/a", 6)
    assert not sent.HasField("spec")


def test_one_that_is_not_what_the_job_computes(lockstep: Lockstep, server: FakeServer) -> None:
    server.add_job("a", State.SUCCEEDED)
    server.result = found("c" * 64)
    server.watches.append([state_event(1, State.FAILED, WRONG)])
    done = lockstep("verify", "a")
    assert done.code == 1 and not server.requests[0].training_job.replay.HasField("step")
    assert done.out.splitlines()[1:] == [
        "6     aaaaaaaaaaaa  cccccccccccc  weights differ",
        f"jobs/verify-1  FAILED: {WRONG}",
    ]
    server.watches.append([state_event(1, State.FAILED, WRONG)])
    done = lockstep("verify", "a", "--json")
    (job,) = done.objects()
    assert (done.code, job["kind"], job["result"]["replay"]["start_step"]) == (1, "VERIFY", "3")
    shown = lockstep("show", "verify-1").out
    assert "replays  jobs/a, from step 0 to 0" in shown and "weights differ" in shown
    assert "weights differ" in lockstep("watch", "verify-1").out


def test_an_unknown_job_and_a_wrong_step(lockstep: Lockstep) -> None:
    done = lockstep("verify", "none")
    assert (done.code, done.out) == (2, "") and "no job jobs/none" in done.err
    for arguments in (("verify",), ("verify", "a", "--step", "x"), ("diff", "a"), ("diff", "none", "a")):
        assert lockstep(*arguments).code == 2
    done = lockstep("verify", "a", "--step", "0")
    assert done.code == 2 and "error: step: got 0" in done.err


def hashes(parted: float, word: str) -> Callable[[int], str]:
    """The weights of a job that goes its own way from a step on."""
    return lambda step: f"{step:060x}{word if step >= parted else 'same'}"


def trained(
    server: FakeServer,
    name: str,
    parted: float = math.inf,
    *,
    kept: tuple[int, ...] = (120, LAST),
    points: range = range(1, LAST + 1, 10),
) -> training_job_pb2.TrainingJob:
    """An ended job whose weights, from a step on, are its own; of its losses some are on the curve."""
    job = server.add_job(name, State.SUCCEEDED)
    job.spec.CopyFrom(digits())
    job.arithmetic_digest, job.dataset_digest, job.arithmetic_version, job.progress.step = "a" * 64, "d" * 64, 1, LAST
    weights = server.weights[job.name] = hashes(parted, name.zfill(4))
    job.result.fingerprint = "f" * 64
    for step in kept:
        job.result.checkpoints.add(step=step, weights_sha256=weights(step))
    events: list[WatchStep] = []
    for number, step in enumerate(points, start=1):
        event = Event(number=number)
        event.points.step = step
        event.points.points.add(name="loss", value=1 / step + (0.5 if step > parted else 0.0))
        events.append(event)
    server.events[job.name] = [*events, state_event(len(events) + 1, State.SUCCEEDED)]
    return job


def test_the_same_job_twice_is_not_replayed(lockstep: Lockstep, server: FakeServer) -> None:
    trained(server, "a")
    trained(server, "b")
    done = lockstep("diff", "a", "b")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"both are the same function: arithmetic digest {'a' * 64}",
        "nothing recorded differs: 24 losses and 2 checkpoints are of the same steps",
        "their weights are the same up to step 240",
    ]


@pytest.mark.parametrize("parted", [1, 2, 77, 119, 121, 130, 131, 240])
def test_the_step_is_found_between_recorded_points(lockstep: Lockstep, server: FakeServer, parted: int) -> None:
    trained(server, "a")
    other = trained(server, "b", parted)
    other.spec.workers.max = 7
    other.spec.optimizer.momentum.learning_rate, other.arithmetic_digest = 0.051, "c" * 64
    done = lockstep("diff", "a", "b")
    assert done.code == 1
    *_, last = done.out.splitlines()
    same, one, two = hashes(math.inf, "")(parted - 1), hashes(math.inf, "")(parted), hashes(0, "000b")(parted)
    assert last == (
        f"they part at step {parted}: after step {parted - 1} both have weights_sha256 {same}, "
        f"after step {parted} jobs/a has {one}, jobs/b {two}"
    )
    table = [line.split() for line in done.out.splitlines()[:3]]
    assert table[1] == ["optimizer.momentum.learning_rate", "0.05", "0.051"]
    assert table[2][0] == "workers.max" and table[2][-2:] == ["decides", "nothing"]
    # A loss narrows it to the steps between two points; nothing before a common checkpoint is replayed.
    asked = [request.training_job.replay for request in server.requests if hasattr(request, "training_job")]
    assert len(asked) == 2 and len(asked[0].hashed_steps) <= (12 if parted < 231 else 120)
    assert "jobs/a is replayed and hashed after" in done.err


def test_as_json_it_is_one_object(lockstep: Lockstep, server: FakeServer) -> None:
    trained(server, "a")
    trained(server, "b", 77).arithmetic_digest = "c" * 64
    done = lockstep("diff", "--json", "a", "b")
    (said,) = done.objects()
    assert (done.code, said["parted_at_step"], said["same_up_to_step"]) == (1, 77, 76)
    assert (said["loss_differs_at_step"], said["checkpoint_differs_at_step"], said["same_arithmetic"]) == (81, 120, False)
    assert len(said["weights_sha256"]) == 2 and said["not_as_computed"] == []


def test_other_initial_weights_part_at_step_0(lockstep: Lockstep, server: FakeServer) -> None:
    trained(server, "a")
    trained(server, "b", 0).arithmetic_digest = "c" * 64
    done = lockstep("diff", "a", "b")
    assert done.code == 1 and "they part at step 0, their initial weights: jobs/a has" in done.out


def test_a_checkpoint_that_its_replay_does_not_give_is_named(lockstep: Lockstep, server: FakeServer) -> None:
    trained(server, "a")
    trained(server, "b").result.checkpoints[1].weights_sha256 = "9" * 64
    done = lockstep("diff", "a", "b")
    assert done.code == 1
    assert done.out.splitlines()[-2:] == [
        "their weights are the same up to step 240",
        "the checkpoint of step 240 of jobs/b is not what its replay gives: lockstep verify b",
    ]


def test_what_cannot_be_compared(lockstep: Lockstep, server: FakeServer) -> None:
    trained(server, "a")
    trained(server, "b").state = State.RUNNING
    done = lockstep("diff", "a", "b")
    assert done.code == 2 and "jobs/b; it is RUNNING; compare jobs that have ended" in done.err
    server.jobs["jobs/b"].kind = training_job_pb2.TrainingJob.GRADIENT_CHECK
    assert "it is a GRADIENT_CHECK" in lockstep("diff", "a", "b").err
    trained(server, "c", 5).arithmetic_digest = "c" * 64
    server.watches += [server.events["jobs/a"], server.events["jobs/c"], [state_event(1, State.FAILED, "other nodes")]]
    done = lockstep("diff", "a", "c")
    assert done.code == 1 and "FAILED: other nodes" in done.err and "part" not in done.out.splitlines()[-1]


def parting(one: Recorded, other: Recorded, parted: float) -> tuple[Parting, int]:
    """Where two jobs part that do at a step, and the replays that it took."""
    calls: list[list[int]] = []

    def replay(name: str, steps: object) -> list[ReplayedStep]:
        calls.append(list(steps))  # type: ignore[call-overload]
        give = hashes(parted if name == "b" else math.inf, "diff")
        return [ReplayedStep(step=step, weights_sha256=give(step)) for step in calls[-1]]

    result = find_parting(one, other, replay)
    assert all(len(steps) <= HASHED_STEPS and steps == sorted(set(steps)) for steps in calls)
    return result, len(calls)


def test_long_jobs_are_halved_many_times_at_once() -> None:
    one, other = Recorded("a", {}, {}, 1_000_000), Recorded("b", {}, {}, 999_999)
    for parted in (0, 1, 200, 5_000, 123_456, 999_999):
        result, calls = parting(one, other, parted)
        assert (result.step, result.same_step) == (parted, parted - 1) and calls <= 6
    result, calls = parting(one, other, math.inf)
    assert (result.step, result.same_step, calls) == (None, 999_999, 2)


def test_losses_that_mislead_are_overruled() -> None:
    # Losses part at step 50 and weights not, as where only the loss was asked otherwise; or weights long before losses.
    losses = dict.fromkeys(range(1, 101), 1.0)
    one, other = Recorded("a", losses, {}, 100), Recorded("b", losses | {50: 2.0}, {}, 100)
    for parted in (3, 49, 50, 51, 100):
        assert parting(one, other, parted)[0].step == parted
    nans = Recorded("c", losses | {50: math.nan}, {}, 100)
    assert first_loss_apart(nans, nans) is None and first_loss_apart(one, nans) == 50


def test_fields_that_differ_are_named_and_those_that_decide_come_first() -> None:
    one = training_job_pb2.TrainingJob(spec=digits(), dataset_digest="d" * 64, arithmetic_version=1)
    two = training_job_pb2.TrainingJob(spec=digits(), dataset_digest="e" * 64, arithmetic_version=1)
    two.spec.name, two.spec.labels["team"] = "other", "x"
    one.spec.dataset, two.spec.dataset = f"datasets/digits@{'d' * 64}", f"datasets/digits@{'e' * 64}"
    two.spec.model.layers[0].dense.units = 64
    two.spec.evaluation.every_steps = 5
    two.spec.preprocessing.standardize.SetInParent()
    said = [(each.field, each.decides) for each in differences(one, two)]
    deciding = {"model.layers[0].dense.units", "dataset", "preprocessing.standardize"}
    assert {name for name, _ in said[:3]} == deciding and {name for name, _ in said[3:]} == {
        "labels.team",
        "evaluation.every_steps",
    }
    assert [decides for _, decides in said] == [True, True, True, False, False]
    for job in (one, two):
        job.spec.optimizer.schedule.plateau.factor = 0.5
    assert ("evaluation.every_steps", True) in [(each.field, each.decides) for each in differences(one, two)]
    assert not differences(one, one)
    two.CopyFrom(one)
    two.spec.dataset = f"datasets/copy@{'d' * 64}"
    assert [(each.field, each.decides) for each in differences(one, two)] == [("dataset", False)]
