"""ShardWorkers end to end, in plain processes: the same weights however they are split, faults named, nothing left."""

from __future__ import annotations

import gc
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from safetensors.numpy import save_file

from lockstep.internal.v1 import worker_pb2 as pb
from lockstep.internal.v1.agent_service_pb2 import RunOrder
from tests.worker.worker_processes import KEY, Workers, order, vectors, weights_hash, write_dataset
from worker.collective.tree import fold
from worker.nn.shapes import parameter_layout
from worker.shard_worker import ShardWorker
from worker.specs import architecture
from worker.state_transfer import TransferError, fetch_state, give_state
from worker.weights_file import tensors_from_flat

INPUTS = 12
COUNTS = ("support", "predicted", "correct")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def digest(files: Path) -> str:
    return write_dataset(files, 1003, INPUTS)


@pytest.fixture(scope="module")
def five() -> Iterator[Workers]:
    with Workers(["a"] * 5) as workers:
        yield workers


# 1,003 rows: the last batch has 107 of 128 rows, 3 of 100 (8 shards, 5 of them empty), 43 of 64, or all 1,003.
SPLITS = [["a"], ["a", "a"], ["a"] * 3, ["a", "b"], ["a", "a", "b"], ["a", "b", "a"], ["a", "a", "b", "b", "c"]]


SMALL = (16, 4)
LARGE = (300, 300, 4)  # has buckets that cross to other nodes while the backward pass goes on


@pytest.mark.parametrize(
    ("batch_size", "shards", "steps", "units"),
    [(128, 4, 20, SMALL), (100, 8, 25, SMALL), (64, 5, 20, SMALL), (5000, 6, 4, SMALL), (100, 8, 22, LARGE)],
)
def test_any_number_of_workers_and_nodes_gives_the_same_bits(
    five: Workers, files: Path, digest: str, batch_size: int, shards: int, steps: int, units: tuple[int, ...]
) -> None:
    run = order(digest, batch_size=batch_size, shards=shards, units=units, standardize=True)
    hashes, velocities, losses, rows = set(), set(), set(), set()
    for nodes in SPLITS:
        if len(nodes) > shards:
            continue
        five.form(files, run, nodes)
        five.restore()
        half = five.stretch(1, steps // 2)
        replies = five.stretch(steps // 2 + 1, steps)
        state = five.state(steps)
        hashes.add(weights_hash(run, INPUTS, state))
        assert weights_hash(run, INPUTS, five.state(steps, same_node=False)) in hashes
        velocities.add(vectors(state)["velocity"].tobytes())
        losses.add(replies[0].losses[-1].loss)
        rows.add(sum(reply.computed_rows for reply in [*half, *replies]))
        assert len({reply.parameters_crc32c for reply in replies}) == 1
        assert all(reply.step == steps and reply.median_step_seconds > 0 for reply in replies)
        assert all(reply.computed_rows > 0 for reply in replies)
        assert sum(reply.sent_bytes for reply in replies) == sum(reply.received_bytes for reply in replies)
        assert any(reply.sent_bytes for reply in replies) == (len(set(nodes)) > 1)
    assert len(hashes) == len(velocities) == len(losses) == 1
    epochs, left = divmod(steps, -(-1003 // min(batch_size, 1003)))
    assert rows == {epochs * 1003 + left * batch_size}


@pytest.mark.parametrize("same_node", [True, False])
def test_a_snapshot_given_to_any_other_group_goes_on_with_the_same_bits(
    five: Workers, files: Path, digest: str, same_node: bool
) -> None:
    run = order(digest, batch_size=100, shards=8)
    run.spec.optimizer.Clear()
    run.spec.optimizer.adam.learning_rate = 0.01
    five.form(files, run, ["a", "a", "b"])
    five.restore()
    five.stretch(1, 9)
    snapshot = vectors(five.state(9))
    five.stretch(10, 20)
    expected = weights_hash(run, INPUTS, five.state(20))
    for nodes in (["a"], ["a", "b", "a"], ["a", "a", "b", "b", "c"]):
        five.form(files, run, nodes)
        five.give(9, snapshot, same_node)
        assert weights_hash(run, INPUTS, five.state(9)) == weights_hash_of(run, snapshot)
        five.stretch(10, 20)
        assert weights_hash(run, INPUTS, five.state(20)) == expected


def weights_hash_of(run: RunOrder, snapshot: dict[str, Any]) -> str:
    """weights_sha256 of whole vectors."""
    return weights_hash(run, INPUTS, {("parameters", 0, len(snapshot["parameters"])): snapshot["parameters"]})


def test_a_state_goes_to_nobody_else_and_not_before_it_is_wanted(five: Workers, files: Path, digest: str) -> None:
    run = order(digest, batch_size=100, shards=8)
    five.form(files, run, ["a"])
    five.restore()
    snapshot = vectors(five.state(0))
    (wanted,) = five.ask(receive=pb.ReceiveRequest(step=0))
    five.restore()  # it is not wanted any more
    stale = replace(five.coordinator, group_number=five.group_number - 1)
    with pytest.raises(TransferError, match="worker 0"):
        give_state(snapshot, 0, wanted.receive, five.endpoints[0], False, five.coordinator, 0)
    for same_node in (True, False):
        with pytest.raises(TransferError, match="worker 0"):
            give_state(snapshot, 0, wanted.receive, five.endpoints[0], same_node, stale, 0)
        (offered,) = five.ask(snapshot=pb.SnapshotRequest(step=0))
        with pytest.raises(TransferError, match="worker 0"):
            fetch_state(offered.snapshot, five.endpoints[0], same_node, stale, 0)
    five.send(0, restore=pb.RestoreRequest(step=0, received=True))
    assert "was to come" in five.receive(0).failure.text


def whole(sums: dict[tuple[int, int], tuple[float, float, int]]) -> tuple[float, float, int] | None:
    """The sums over the tree of 4 blocks."""

    def add(left: tuple[float, float, int], right: tuple[float, float, int]) -> tuple[float, float, int]:
        return left[0] + right[0], left[1] + right[1], left[2] + right[2]

    return fold(0, 4, lambda first, end: sums.get((first, end)), add)


WIDE_JOB = """
model { layers { dense { units: 12 } } layers { gelu {} } layers { dropout { rate: 0.2 } }
        layers { residual { layers { dense { units: 12 } } layers { silu {} } layers { dense { units: 12 } } } }
        layers { parallel { branches { layers { dense { units: 5 } } } branches { layers { tanh {} } } } }
        layers { dense { units: 4 } } }
loss { softmax_cross_entropy {} l1: 1e-4 l2: 1e-3 }
optimizer { adamw { learning_rate: 0.01 weight_decay: 0.1 } schedule { cosine {} warmup_steps: 5 } }
"""


def test_paths_decay_and_a_schedule_give_the_same_bits_on_any_number_of_workers(
    five: Workers, files: Path, digest: str
) -> None:
    run = order(digest, batch_size=100, shards=8)
    for field in ("model", "loss", "optimizer"):
        run.spec.ClearField(field)
    text_format.Merge(WIDE_JOB, run.spec)
    hashes, losses = set(), set()
    for nodes in SPLITS:
        five.form(files, run, nodes)
        five.restore()
        first = five.stretch(1, 11)[0].losses[0].loss
        end = five.stretch(12, 40, rate_factor=0.3)[0].losses[-1]
        last = end.loss
        assert last < first
        assert end.learning_rate == 0.01 * ((1 + math.cos(math.pi * (34 / (run.plan.total_steps - 5)))) / 2) * 0.3
        hashes.add(weights_hash(run, INPUTS, five.state(40)))
        losses.add(last)
    assert len(hashes) == len(losses) == 1


NORM_JOB = """
model { layers { dense { units: 300 } } layers { relu {} } layers { dense { units: 20 } } layers { relu {} }
        layers { dense { units: 4 } } }
loss { softmax_cross_entropy {} l2: 1e-3 }
optimizer { lamb { learning_rate: 0.01 weight_decay: 0.1 } clipping { global_norm: 0.5 } }
"""


def test_norms_give_the_same_bits_on_any_number_of_workers_and_after_a_checkpoint(
    five: Workers, files: Path, digest: str
) -> None:
    run = order(digest, batch_size=100, shards=8)
    for field in ("model", "loss", "optimizer"):
        run.spec.ClearField(field)
    text_format.Merge(NORM_JOB, run.spec)
    layout = parameter_layout(architecture(run.spec.model, (INPUTS,)))
    found, folder = set(), files / "checkpoints" / "test" / "11-norms"
    folder.mkdir(parents=True)
    for nodes in SPLITS:
        five.form(files, run, nodes)
        five.restore()
        first = five.stretch(1, 11)[0].losses[0].loss
        middle = vectors(five.state(11))
        assert five.stretch(12, 40)[0].losses[-1].loss < first
        found.add(tuple(vector.tobytes() for _, vector in sorted(vectors(five.state(40)).items())))
    assert sorted(middle) == ["mean", "parameters", "squares"]
    save_file(tensors_from_flat(layout, middle.pop("parameters")), folder / "model.safetensors")
    state = {f"{key}/{name}": t for key, flat in middle.items() for name, t in tensors_from_flat(layout, flat).items()}
    save_file(state, folder / "optimizer.safetensors")
    five.form(files, run, ["a", "b"])
    five.restore(11, "checkpoints/test/11-norms")
    five.stretch(12, 40)
    found.add(tuple(vector.tobytes() for _, vector in sorted(vectors(five.state(40)).items())))
    assert len(found) == 1


def test_evaluation_is_the_same_for_any_number_of_workers(five: Workers, files: Path, digest: str) -> None:
    run = order(digest, batch_size=64, shards=8, validation_fraction=0.9)
    found = set()
    for nodes in (["a"], ["a", "b"], ["a"] * 5):
        five.form(files, run, nodes)
        five.restore()
        five.stretch(1, 6)
        replies = [reply.evaluate for reply in five.ask(evaluate=pb.EvaluateRequest(step=6))]
        sums = [part for reply in replies for part in reply.sums]
        assert sum(part.rows for part in sums) == 903
        known = {(part.first_block, part.end_block): (part.loss_sum, part.denominator, part.correct) for part in sums}
        by_class = [reply.classes for reply in replies if reply.classes.support]
        counts = [tuple(map(sum, zip(*(getattr(one, name) for one in by_class), strict=True))) for name in COUNTS]
        found.add((whole(known), tuple(counts)))
    assert len(found) == 1
    result, (support, predicted, right) = found.pop()
    assert result is not None
    loss_sum, denominator, correct = result
    assert denominator == sum(support) == sum(predicted) == 903 and 0 < correct == sum(right) <= 903 and loss_sum > 0


def test_a_checkpoint_continues_bit_for_bit(five: Workers, files: Path, digest: str) -> None:
    run = order(digest, batch_size=100, shards=4)
    five.form(files, run, ["a", "a"])
    five.restore()
    five.stretch(1, 13)
    layout = parameter_layout(architecture(run.spec.model, (INPUTS,)))
    middle = vectors(five.state(13))
    folder = files / "checkpoints" / "test" / "13-abc"
    folder.mkdir(parents=True)
    save_file(tensors_from_flat(layout, middle["parameters"]), folder / "model.safetensors")
    velocity = tensors_from_flat(layout, middle["velocity"])
    save_file({f"velocity/{name}": tensor for name, tensor in velocity.items()}, folder / "optimizer.safetensors")
    five.stretch(14, 30)
    expected = five.state(30)
    for nodes in (["a"], ["a", "b", "b"]):
        five.form(files, run, nodes)
        five.restore(13, "checkpoints/test/13-abc")
        five.stretch(14, 30)
        state = five.state(30)
        assert {k: v.tobytes() for k, v in vectors(state).items()} == {k: v.tobytes() for k, v in vectors(expected).items()}


def test_a_gradient_that_is_not_finite_is_located_and_not_applied(five: Workers, files: Path) -> None:
    bad = write_dataset(files, 64, INPUTS, seed=9)
    x = np.load(files / "datasets" / bad / "x.npy")
    x[17, 3] = np.inf
    np.save(files / "datasets" / bad / "x.npy", x)
    run = order(bad, batch_size=64, shards=4)
    places = set()
    for nodes in (["a"], ["a", "a", "b"]):
        five.form(files, run, nodes)
        five.restore()
        before = five.state(0)
        replies = five.stretch(1, 5)
        assert [reply.step for reply in replies] == [0] * len(nodes)
        assert all(reply.non_finite.step == 1 for reply in replies)
        places |= {
            (reply.non_finite.layer, reply.non_finite.shard, tuple(reply.non_finite.rows))
            for reply in replies
            if reply.non_finite.layer
        }
        after = five.state(0)
        assert all(after[key].tobytes() == value.tobytes() for key, value in before.items())
    assert len(places) == 1
    layer, _, rows = places.pop()
    assert layer == "layers[0].dense" and rows == (17,)


def test_an_update_that_overflows_is_in_the_state_that_is_offered(five: Workers, files: Path, digest: str) -> None:
    five.form(files, order(digest, batch_size=128, shards=4, learning_rate=3e38), ["a", "b"])
    five.restore()
    assert all(reply.step == 1 and not reply.HasField("non_finite") for reply in five.stretch(1, 1))
    assert not all(np.isfinite(vector).all() for vector in five.state(1).values())


def wait_for_steps(pid: int, fd: int, count: int) -> None:
    """Waits until the worker's counter, the second cache line of its segment, has passed `count` barriers."""
    deadline = time.monotonic() + 20
    segment = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY)
    try:
        while int.from_bytes(os.pread(segment, 8, 64), "little") < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.close(segment)


@pytest.mark.parametrize(
    ("victim", "sign", "units"),
    [
        *((victim, sign, SMALL) for sign in (signal.SIGKILL, signal.SIGSTOP) for victim in (1, 2)),
        *((victim, sign, LARGE) for sign in (signal.SIGKILL, signal.SIGSTOP) for victim in (1, 2)),
    ],
)
def test_a_lost_worker_is_named_within_the_deadline_and_the_survivors_go_on(
    files: Path, digest: str, victim: int, sign: signal.Signals, units: tuple[int, ...]
) -> None:
    run = order(digest, batch_size=64, shards=4, units=units, total_steps=10_000_000)
    with Workers(["a", "a", "b"]) as workers:
        workers.form(files, run, floor_s=2.0)
        workers.restore()
        for rank in range(3):
            workers.send(rank, stretch=pb.StretchRequest(first_step=1, last_step=10_000_000, rate_factor=1))
        lost = workers.endpoints[victim]
        wait_for_steps(lost.pid, lost.segment_fd, 200)
        os.kill(lost.pid, sign)
        began = time.monotonic()
        for rank in {0, 1, 2} - {victim}:
            failure = workers.receive(rank).failure
            assert failure.kind == pb.Failure.PEER, failure
            assert list(failure.missing_ranks) == [victim], failure.text
            assert f"worker {victim} (node {'ab'[victim // 2]})" in failure.text and failure.step > 10
        assert time.monotonic() - began < 10
        if victim == 2:
            workers.form(files, run, ["a", "a"])
            workers.restore()
            assert workers.stretch(1, 5)[0].step == 5


def test_requests_out_of_turn_become_failures() -> None:
    worker = ShardWorker("a", "127.0.0.1")

    def ask(**request: Any) -> pb.WorkerReply:
        return pb.WorkerReply.FromString(worker.handle(pb.WorkerRequest(**request).SerializeToString()))

    assert ask(heartbeat=pb.HeartbeatRequest()).WhichOneof("reply") == "done"
    assert "prepare comes first" in ask(stretch=pb.StretchRequest(first_step=1, last_step=1)).failure.text
    assert "cannot be read" in pb.WorkerReply.FromString(worker.handle(b"\xff\xff")).failure.text
    assert "without a kind" in ask().failure.text
    joined = ask(join=pb.JoinRequest()).join
    assert joined.pid == os.getpid() and joined.fingerprint and joined.node_id == "a" and joined.memory_bytes > 1 << 20


def test_a_missing_dataset_is_the_nodes_affair(tmp_path: Path) -> None:
    worker = ShardWorker("a", "127.0.0.1")
    request = pb.PrepareRequest(
        order=order("0" * 64, batch_size=4, shards=1), files_folder=str(tmp_path), group_key=KEY, node_ids=["a"]
    )
    reply = pb.WorkerReply.FromString(worker.handle(pb.WorkerRequest(prepare=request).SerializeToString()))
    assert reply.failure.kind == pb.Failure.NODE and "must see the data folder" in reply.failure.text


def test_groups_that_follow_each_other_leave_nothing(files: Path, digest: str) -> None:
    worker = ShardWorker("a", "127.0.0.1")
    run = order(digest, batch_size=64, shards=4)

    def ask(**request: Any) -> pb.WorkerReply:
        reply = pb.WorkerReply.FromString(worker.handle(pb.WorkerRequest(**request).SerializeToString()))
        assert reply.WhichOneof("reply") != "failure", reply.failure.trace
        return reply

    def left() -> tuple[int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("memfd:lockstep")

    seen = []
    for group in range(1, 4):
        request = pb.PrepareRequest(
            order=run,
            files_folder=str(files),
            group_number=group,
            group_key=KEY,
            node_ids=["a"],
            step_deadline_floor_s=5,
            first_step_deadline_s=5,
        )
        prepared = ask(prepare=request).prepare
        ask(connect=pb.PeersRequest(peers=[prepared]))
        ask(restore=pb.RestoreRequest())
        ask(stretch=pb.StretchRequest(first_step=1, last_step=20, rate_factor=1))
        seen.append(left())
    assert len(set(seen)) == 1 and seen[0][1] == 1
    worker.close()
    assert left()[1] == 0
