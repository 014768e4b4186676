"""The gradient check as a worker does it: on rows of step 1, with the job's own draws, within its time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from lockstep.internal.v1 import worker_pb2 as pb
from tests.worker.worker_processes import KEY, order, write_dataset
from worker import gradient_check
from worker.build import build_model
from worker.data.columns import open_columns
from worker.gradient_check import JobGradientCheck
from worker.limits import GRADIENT_CHECK_TIME_S
from worker.nn.gradient_check import FLOAT32_TOLERANCE, TOLERANCE
from worker.rows import RowSource
from worker.shard_worker import ShardWorker

INPUTS = 12

JOB = """
model { layers { dense { units: 12 } } layers { batch_norm {} } layers { gelu {} } layers { dropout { rate: 0.2 } }
        layers { residual { layers { dense { units: 12 } } layers { silu {} } layers { dense { units: 12 } } } }
        layers { dense { units: 4 } } }
loss { softmax_cross_entropy {} l1: 1e-4 l2: 1e-3 }
optimizer { adamw { learning_rate: 0.01 weight_decay: 0.1 } }
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def digest(files: Path) -> str:
    return write_dataset(files, 103, INPUTS)


def ask(worker: ShardWorker, **request: object) -> pb.WorkerReply:
    return pb.WorkerReply.FromString(worker.handle(pb.WorkerRequest(**request).SerializeToString()))  # type: ignore[arg-type]


def formed(files: Path, digest: str, nodes: int = 1, batch_size: int = 32) -> ShardWorker:
    """A worker with the initial weights; or, of several, the first, prepared and no more."""
    run = order(digest, batch_size=batch_size, shards=4, standardize=True)
    for field in ("model", "loss", "optimizer"):
        run.spec.ClearField(field)
    text_format.Merge(JOB, run.spec)
    worker = ShardWorker("a", "127.0.0.1")
    prepare = pb.PrepareRequest(
        order=run, files_folder=str(files), group_number=1, group_key=KEY, node_ids=["a"] * nodes, step_deadline_floor_s=5.0
    )
    reply = ask(worker, prepare=prepare)
    assert reply.HasField("prepare"), reply.failure.text
    if nodes == 1:
        assert ask(worker, connect=pb.PeersRequest(peers=[reply.prepare])).HasField("done")
        assert ask(worker, restore=pb.RestoreRequest()).HasField("done")
    return worker


@pytest.mark.parametrize(("batch_size", "rows"), [(32, 16), (9, 9), (2, 2)])
def test_every_learned_tensor_of_a_job_is_right(files: Path, digest: str, batch_size: int, rows: int) -> None:
    worker = formed(files, digest, batch_size=batch_size)
    try:
        for number in range(10):
            reply = ask(worker, gradient_check=pb.GradientCheckRequest(tensor=number))
            assert reply.HasField("gradient_check"), reply.failure.text
            tensor = reply.gradient_check.tensor
            assert reply.gradient_check.rows == rows
            assert tensor.worst_relative_error < TOLERANCE and tensor.float32_deviation < FLOAT32_TOLERANCE, tensor
            assert 0 < tensor.checked <= 50 and tensor.elements == np.prod(tensor.shape)
            assert len(tensor.worst_index) == len(tensor.shape) and "running" not in tensor.name
        # The running statistics are no tensors of a check.
        assert ask(worker, gradient_check=pb.GradientCheckRequest(tensor=10)).failure.kind == pb.Failure.INTERNAL
    finally:
        worker.close()


def test_it_takes_one_worker_with_the_initial_weights(files: Path, digest: str) -> None:
    alone = ShardWorker("a", "127.0.0.1")
    request = pb.GradientCheckRequest()
    assert "prepare comes first" in ask(alone, gradient_check=request).failure.text
    for worker in (formed(files, digest, nodes=2), formed(files, digest)):
        try:
            if worker._prepared().stretches is not None:
                assert ask(worker, stretch=pb.StretchRequest(first_step=1, last_step=1)).HasField("stretch")
            assert ask(worker, gradient_check=request).failure.kind == pb.Failure.INTERNAL
        finally:
            worker.close()


def test_the_time_is_shared_out(files: Path, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes with each look at the clock: every tensor gets its part of what is left, and the last at least one."""
    run = order(digest, batch_size=32, shards=4)
    columns = open_columns(files / "datasets" / digest)
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    def checked(time_s: float) -> list[int]:
        monkeypatch.setattr(gradient_check, "GRADIENT_CHECK_TIME_S", time_s)
        model = build_model(run.spec, columns.input_shape)
        check = JobGradientCheck(model, RowSource(columns, None), np.arange(103), 32, clock)
        return [check.tensor(number).tensor.checked for number in range(4)]

    assert checked(1000) == [50, 50, 16, 4]
    assert checked(0.1) == [1, 1, 1, 1]
    few = checked(GRADIENT_CHECK_TIME_S)
    assert all(5 < count < 15 for count in few[:2]) and few[3] == 4
