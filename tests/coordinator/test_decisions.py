"""The pure parts: where stretches end, who joins, what a failure leads to, what sums and rows come to."""

from __future__ import annotations

import os
import signal
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator import limits
from coordinator.evaluation import combine
from coordinator.exit_status import Cause, interpret
from coordinator.group.group import WorkerLoss
from coordinator.joining import NotFitting, admit
from coordinator.preflight import Needs, lacks, write_marker
from coordinator.recovery import Corrupted, GroupFailed, NotFinite, decide, earliest, skipped_sentence
from coordinator.sharding import Rows, by_node, workers_used
from coordinator.snapshots import Snapshot
from coordinator.stretches import Cadence, Pace, next_stretch
from lockstep.contract.arithmetic import EVALUATION_BLOCK_ROWS
from lockstep.contract.errors import InternalError
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import worker_pb2
from lockstep.v1 import job_spec_pb2
from lockstep.v1 import training_job_pb2 as job
from worker.collective.tree import owned_shards, subtrees

cadences = st.builds(
    lambda epochs, per_epoch, evaluate, checkpoint: Cadence(epochs * per_epoch, per_epoch, evaluate, checkpoint, 1),
    st.integers(1, 20),
    st.integers(1, 50),
    st.integers(0, 70),
    st.integers(0, 70),
)


@given(cadences, st.floats(1e-6, 10), st.floats(0, 1))
def test_stretches_follow_each_other_and_no_evaluation_or_checkpoint_is_passed(
    cadence: Cadence, step_s: float, copy_s: float
) -> None:
    step, pace, clock, committed = 0, Pace(), 0.0, 0.0
    while step < cadence.total_steps:
        stretch = next_stretch(cadence, step, pace, clock - committed)
        assert stretch.first == step + 1 and stretch.last > step
        inner = range(stretch.first, stretch.last)
        assert not any(cadence.evaluates(within) for within in inner)
        assert not any(cadence.checkpoint_every and cadence.checkpoints(within, 0.0) for within in inner)
        longest = max(limits.STRETCH_S, limits.STRETCH_COPIES * copy_s)
        assert stretch.steps == 1 or stretch.steps * step_s <= longest * 1.001
        step, clock = stretch.last, clock + stretch.steps * step_s
        if cadence.checkpoints(step, clock - committed):
            committed = clock
        pace = pace.after(stretch.steps, step_s, copy_s)
    assert step == cadence.total_steps and cadence.checkpoints(step, 0.0)


def test_checkpoints_without_a_cadence_lie_at_epochs_ends_ten_seconds_apart() -> None:
    cadence = Cadence(1000, 10, 0, 0, 1)
    assert not cadence.checkpoints(10, 9.9) and cadence.checkpoints(10, 10.0) and not cadence.checkpoints(11, 100.0)
    assert cadence.checkpoints(1000, 0.0)


def test_steps_of_a_long_run_meet_rarely() -> None:
    cadence, step, pace, meetings = Cadence(10_000, 10_000, 0, 0, 5), 0, Pace(), 0
    while step < 10_000:
        stretch = next_stretch(cadence, step, pace, 0.0)
        step, pace, meetings = stretch.last, pace.after(stretch.steps, 0.001, 0.001), meetings + 1
    assert meetings <= 15


def test_points_are_at_most_two_thousand_and_hold_the_last_step() -> None:
    for total in (1, 1999, 2000, 2001, 12_345):
        order = agent.RunOrder(plan=job.Plan(total_steps=total, steps_per_epoch=total))
        cadence = Cadence.of(order)
        points = [step for step in range(1, total + 1) if cadence.is_point(step)]
        assert points[-1] == total and len(points) <= 2001


def test_evaluations_of_a_curve_are_at_most_two_thousand_and_hold_the_last() -> None:
    for total, every in ((100, 7), (40_000, 10), (50_001, 10)):
        cadence = Cadence(total, 10, every, 0, 1)
        evaluations = [step for step in range(1, total + 1) if cadence.evaluates(step)]
        points = [step for step in evaluations if cadence.is_evaluation_point(step)]
        assert points[-1] == total and len(points) <= 2001
        assert len(points) == len(evaluations) or len(evaluations) > 2000


@given(st.integers(1, 500), st.integers(1, 600), st.integers(0, 40), st.integers(0, 40))
def test_each_row_of_an_epoch_is_applied_once(training_rows: int, batch_size: int, after: int, more: int) -> None:
    batch = min(batch_size, training_rows)
    per_epoch = -(-training_rows // batch)
    rows = Rows(training_rows, batch_size, per_epoch)
    by_hand = [min(batch, training_rows - step % per_epoch * batch) for step in range(after + more)]
    assert rows.up_to(after + more) == sum(by_hand)
    assert rows.between(after, after + more) == sum(by_hand[after:])
    assert rows.up_to(per_epoch) == training_rows
    assert rows.epoch_of(per_epoch) == 1 and rows.epoch_of(per_epoch + 1) == 2 and rows.epoch_of(0) == 0


def test_workers_of_a_node_are_neighbours_and_never_more_than_shards() -> None:
    assert by_node(["b", "a", "b", "c", "a"]) == [0, 2, 1, 4, 3]
    assert workers_used(job.Plan(shards=4), 8) == 4
    assert workers_used(job.Plan(shards=4), 2) == 2


@given(st.integers(1, 40), st.lists(st.floats(-1e6, 1e6), min_size=40, max_size=40))
def test_an_evaluation_has_the_same_bits_for_any_number_of_workers(blocks: int, losses: list[float]) -> None:
    def sums(first: int, end: int) -> worker_pb2.BlockSums:
        if end - first == 1:
            return worker_pb2.BlockSums(
                first_block=first, end_block=end, loss_sum=losses[first], denominator=256, correct=first, rows=256, labels=256
            )
        middle = (first + end) // 2
        left, right = sums(first, middle), sums(middle, end)
        return worker_pb2.BlockSums(
            first_block=first,
            end_block=end,
            loss_sum=left.loss_sum + right.loss_sum,
            denominator=left.denominator + right.denominator,
            correct=left.correct + right.correct,
            labels=left.labels + right.labels,
            rows=left.rows + right.rows,
        )

    rows = EVALUATION_BLOCK_ROWS * (blocks - 1) + 1
    results = set()
    for workers in (1, 2, 3, 5):
        parts = [sums(*node) for rank in range(workers) for node in subtrees(0, blocks, *owned_shards(rank, workers, blocks))]
        counts = worker_pb2.ClassCounts(support=[256], predicted=[256], correct=[100])
        replies = [worker_pb2.EvaluateReply(sums=[part], classes=counts) for part in reversed(parts)]
        found = combine(replies, rows, positions=False)
        results.add((found.loss, found.accuracy))
    assert len(results) == 1
    with pytest.raises(InternalError, match="no worker evaluated block"):
        combine([worker_pb2.EvaluateReply(sums=parts[1:])], rows, positions=False)


def reply(fingerprint: str, node: str = "n", **explanation: str) -> worker_pb2.JoinReply:
    return worker_pb2.JoinReply(fingerprint=fingerprint, node_id=node, host="h-" + node, explanation=explanation)


def test_a_worker_without_the_portable_kernels_is_refused_with_its_reason() -> None:
    unfit = reply("most", node="old")
    unfit.unfit = "its processor lacks fma"
    admitted = admit([unfit, unfit, reply("portable")], "", 1)
    assert (admitted.ranks, admitted.fingerprint) == ([2], "portable")
    assert (
        "worker 0 (node old, host h-old) cannot compute the portable arithmetic: its processor lacks fma" in admitted.refused[0]
    )
    with pytest.raises(NotFitting, match=r"0 of 1 workers.*lacks fma"):
        admit([unfit], "", 1)


def test_a_worker_that_differs_is_refused_with_both_fingerprints_and_what_differs() -> None:
    joined = [reply("odd", "b", kernel="Prescott", numpy="2.4"), *[reply("most", "a", kernel="Haswell", numpy="2.4")] * 2]
    admitted = admit(joined, "", 1)
    assert (admitted.ranks, admitted.fingerprint) == ([1, 2], "most")
    (said,) = admitted.refused
    assert all(word in said for word in ("worker 0", "odd", "most", "kernel", "Prescott", "Haswell")) and "numpy" not in said
    assert admit(joined, "odd", 1).ranks == [0]


def test_too_few_that_fit_make_the_job_wait_with_a_sentence() -> None:
    with pytest.raises(NotFitting, match=r"0 of 1 workers.*fingerprint one, the job's is another; here: kernel Haswell"):
        admit([reply("one", kernel="Haswell")], "another", 1)
    with pytest.raises(NotFitting, match="1 of 2 workers"):
        admit([reply("one"), reply("two")], "", 2)


def test_of_equally_many_the_first_decides() -> None:
    assert admit([reply("one"), reply("two")], "", 1).fingerprint == "one"


LOSS = WorkerLoss(3, "node-b", 77, Cause.OUT_OF_MEMORY, "was killed by the kernel because memory ran out (SIGKILL)")


def test_a_lost_worker_comes_before_the_peers_that_miss_it() -> None:
    peer = worker_pb2.Failure(kind=worker_pb2.Failure.PEER, text="worker 3 did not reach step 812")
    end = decide(GroupFailed(811, "taking steps 812 to 900", [LOSS], {0: peer}), job_spec_pb2.FAIL)
    assert end.outcome == agent.RunEnded.LOST
    assert "worker 3" in end.reason and "memory" in end.reason and "811" in end.reason and "812" in end.reason
    alone = decide(GroupFailed(811, "taking steps 812 to 900", [], {0: peer}), job_spec_pb2.FAIL)
    assert alone.cause == agent.RunEnded.OUTSIDE and "did not reach step 812" in alone.reason


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (worker_pb2.Failure.USER, agent.RunEnded.FAILED),
        (worker_pb2.Failure.MEMORY, agent.RunEnded.LOST),
        (worker_pb2.Failure.NODE, agent.RunEnded.LOST),
        (worker_pb2.Failure.INTERNAL, agent.RunEnded.LOST),
    ],
)
def test_a_cause_comes_before_its_consequences(
    kind: worker_pb2.Failure.Kind.ValueType, outcome: agent.RunEnded.Outcome.ValueType
) -> None:
    failures = [
        worker_pb2.Failure(kind=worker_pb2.Failure.PEER, text="consequence"),
        worker_pb2.Failure(kind=kind, text="the cause"),
    ]
    end = decide(GroupFailed(1, "evaluating", [], dict(enumerate(failures))), job_spec_pb2.FAIL)
    assert end.outcome == outcome and end.reason.startswith("the cause")


@pytest.mark.parametrize(
    ("causes", "own"),
    [
        ([Cause.KILLED], False),
        ([Cause.NODE_GONE, Cause.UNREACHABLE], False),
        ([Cause.CRASHED], True),
        ([Cause.LATE], True),
        ([Cause.EXITED], True),
        ([Cause.KILLED, Cause.OUT_OF_MEMORY], True),
    ],
)
def test_a_loss_from_outside_is_no_cause_of_its_own_whatever_its_sentence(causes: list[Cause], own: bool) -> None:
    losses = [WorkerLoss(rank, "node-b", 77, cause, "agent head node gone") for rank, cause in enumerate(causes)]
    end = decide(GroupFailed(811, "taking steps", losses, {}), job_spec_pb2.FAIL)
    assert end.cause == (agent.RunEnded.OWN if own else agent.RunEnded.OUTSIDE)
    failure = worker_pb2.Failure(kind=worker_pb2.Failure.INTERNAL, text="killed from outside")
    assert decide(GroupFailed(1, "evaluating", [], {0: failure}), job_spec_pb2.FAIL).cause == agent.RunEnded.OWN


def test_a_number_that_is_not_finite_is_named_with_step_layer_shard_and_rows() -> None:
    found = place("layers[2].dense", "output", rows=[5, 9], non_finite_rows=2)
    end = decide(NotFinite(found), job_spec_pb2.FAIL)
    assert end.outcome == agent.RunEnded.FAILED and end.notice == "NON_FINITE"
    said = "step 12: a number that is not finite came up in the output of layers[2].dense, shard 3, rows 5, 9 (counted from 0)"
    assert end.reason == f"{said}; the step was not applied: lower the learning rate, or look at these rows"
    skipped = decide(NotFinite(found), job_spec_pb2.SKIP_STEP)
    assert skipped.outcome == agent.RunEnded.FAILED and "number 100 in a row that is skipped" in skipped.reason
    state = decide(NotFinite(worker_pb2.NonFinite(step=9), "velocity"), job_spec_pb2.FAIL)
    assert "step 9: the update gave velocity that are not finite" in state.reason and "not applied" in state.reason
    assert "rows" not in state.reason
    assert skipped_sentence(found) == f"{said}; the step was skipped"


def place(layer: str, where: str, **changes: Any) -> worker_pb2.NonFinite:
    """What a worker says of step 12, of shard 3 and its 251 rows unless changed."""
    fields: dict[str, Any] = {"shard": 3, "shard_rows": 251, **changes}
    return worker_pb2.NonFinite(step=12, layer=layer, where=where, **fields)


@pytest.mark.parametrize(
    ("found", "says", "remedy"),
    [
        (place("loss", "loss", rows=[417], non_finite_rows=1), "the loss, shard 3, row 417 (counted from 0);", "this row"),
        (
            place("layers[0].dense", "input", rows=range(16), non_finite_rows=40),
            "the input of layers[0].dense, shard 3, rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 "
            "(counted from 0; 40 in all);",
            "these rows",
        ),
        (
            place("layers[0].dense", "gradient of the parameters", rows=[3, 8]),
            "the gradient of the parameters of layers[0].dense, shard 3: a sum over its rows (2 of 251 rows of the shard, "
            "counted from 0: 3, 8);",
            "large numbers in the data",
        ),
        (
            place("layers[0].dense", "gradient of the parameters", rows=[3, 8], shard_rows=2),
            "shard 3: a sum over its rows (the rows of the shard, counted from 0: 3, 8);",
            "large numbers in the data",
        ),
        (
            place("layers[0].dense", "sum of the shards' gradients", shard=0, shard_rows=0),
            "the sum of the shards' gradients of layers[0].dense;",
            "learning rate",
        ),
        (place("layers[4].dense", "parameters", shard=0, shard_rows=0), "the parameters of layers[4].dense;", "learning rate"),
        (
            worker_pb2.NonFinite(step=12),
            "step 12: a number that is not finite came up in the sum of gradients;",
            "learning rate",
        ),
    ],
)
def test_rows_are_blamed_only_where_they_are_what_is_not_finite(found: worker_pb2.NonFinite, says: str, remedy: str) -> None:
    reason = decide(NotFinite(found), job_spec_pb2.FAIL).reason
    assert says in reason and reason.endswith(remedy)


def test_what_came_first_in_the_pass_is_named_then_the_first_shard() -> None:
    nothing, unknown = worker_pb2.NonFinite(step=12), worker_pb2.NonFinite(step=12, layer="loss", where="sum of the losses")
    late, early = place("layers[4].dense", "output", moment=9, shard=0), place("layers[0].dense", "output", moment=4, shard=7)
    first = place("layers[0].dense", "output", moment=4, shard=2)
    for places in permutations([nothing, late, early, first, unknown]):
        assert earliest(places) is first
    assert earliest([nothing, unknown]) is unknown and earliest([nothing, late]) is late


def test_a_snapshot_names_the_vector_that_holds_what_is_not_finite() -> None:
    whole = np.zeros(5, np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        broken = np.array([0, 0, 0, 0, bad], np.float32)
        assert Snapshot(3, {"parameters": whole, "velocity": broken}).not_finite() == "velocity"
    assert Snapshot(3, {"parameters": whole, "velocity": whole}).not_finite() == ""


def test_corruption_is_told_and_a_new_run_goes_on() -> None:
    end = decide(Corrupted("they differ"), job_spec_pb2.FAIL)
    assert (end.outcome, end.notice) == (agent.RunEnded.LOST, "CORRUPTION_DETECTED")


def test_reasons_are_bounded() -> None:
    failure = worker_pb2.Failure(kind=worker_pb2.Failure.INTERNAL, text="x" * 100_000)
    assert len(decide(GroupFailed(1, "evaluating", [], {0: failure}), job_spec_pb2.FAIL).reason) <= limits.REASON_CHARACTERS


def test_exit_statuses_are_read() -> None:
    assert interpret(3) == (Cause.EXITED, "ended by itself with exit code 3")
    assert interpret(-signal.SIGKILL)[0] == Cause.KILLED
    assert interpret(-signal.SIGKILL, out_of_memory=True)[0] == Cause.OUT_OF_MEMORY
    assert interpret(-signal.SIGSEGV)[0] == Cause.CRASHED
    assert interpret(-signal.SIGBUS)[0] == Cause.OUT_OF_MEMORY
    assert interpret(-signal.SIGTERM) == (Cause.KILLED, "was killed from outside (SIGTERM)")
    assert "signal 64" in interpret(-64)[1] or "SIG" in interpret(-64)[1]


def test_the_preflight_names_what_is_lacking_and_the_remedy(tmp_path: os.PathLike[str]) -> None:
    from pathlib import Path

    folder = Path(tmp_path) / "files"
    (said,) = lacks(Needs(str(folder), "word"))
    assert "does not exist" in said and "mount" in said
    write_marker(folder, "word")
    assert lacks(Needs(str(folder), "word")) == []
    (said,) = lacks(Needs(str(folder), "another"))
    assert "another folder" in said
    assert sorted(entry.name for entry in folder.iterdir()) == [".shared-folder"]
