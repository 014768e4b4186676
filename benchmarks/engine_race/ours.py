"""Our side: a ShardWorker, the only one of its group, asked for stretches as a coordinator asks.

Nothing is left out of a step: the epoch's order, the gathering of rows, both passes, the reduction of a group of one over its
segment, the update. A turn is a stretch and ends with the checksum of the parameters that ends every stretch.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, final

import numpy as np
from google.protobuf.json_format import ParseDict

from benchmarks.engine_race.cases import BY_NAME, MOMENTUM, Case, Net
from benchmarks.turns import MemoryGauge, cpu_seconds, serve
from lockstep.contract.arithmetic import default_shards
from lockstep.internal.v1 import worker_pb2 as pb
from lockstep.internal.v1.agent_service_pb2 import RunOrder
from lockstep.v1.job_spec_pb2 import JobSpec
from worker.build import build_model
from worker.randomness import epoch_order
from worker.shard_worker import ShardWorker

SEED = 7
TOTAL_STEPS = 1_000_000  # of a long job: few steps are points of its curve
CURVE_STEPS = 2000  # no more than the points of a curve, so that each step's loss is kept
PEAK_SIZE = 1536


def made_rows(net: Net) -> tuple[Any, Any]:
    """Inputs and targets that can be learned from them."""
    draw = np.random.default_rng(5)
    shape = (net.rows, *net.input_shape)
    if net.input_kind == "tokens":
        tokens = draw.integers(0, net.classes, shape)
        return tokens.astype(np.float32), (3 * tokens + 1) % net.classes
    x = draw.standard_normal(shape, np.float32)
    return x, x.reshape(net.rows, -1)[:, -net.classes :].argmax(axis=1)


def write_table(net: Net, folder: Path) -> str:
    """A dataset version of made-up rows; returns its digest."""
    x, y = made_rows(net)
    digest = hashlib.sha256(x.tobytes()).hexdigest()
    home = folder / "datasets" / digest
    home.mkdir(parents=True)
    columns = {}
    for name, column in (("x", x), ("y", y)):
        np.save(home / f"{name}.npy", column)
        columns[name] = {"dtype": column.dtype.name, "shape": column.shape}
    (home / "dataset.json").write_text(json.dumps({"format": 1, "columns": columns}))
    return digest


def job(net: Net, shards: int) -> JobSpec:
    """Its training as a job."""
    described: dict[str, Any] = {
        "model": {"layers": net.layers},
        "loss": {"softmaxCrossEntropy": {}},
        "optimizer": {"momentum": {"learningRate": net.learning_rate, "momentum": MOMENTUM}},
        "training": {"epochs": 1, "batchSize": net.batch, "shards": shards, "seed": SEED},
    }
    return ParseDict(described, JobSpec())


@final
class Ours:
    """The worker of one case, its step cut into `shards`; before its first step, as after `restart`."""

    def __init__(self, case: Case, folder: Path, digest: str, shards: int, total_steps: int = TOTAL_STEPS) -> None:
        self._worker = ShardWorker("a", "127.0.0.1")
        order = RunOrder(job_id="benchmark", run_number=1, spec=job(case, shards), dataset_digest=digest)
        order.plan.shards, order.plan.total_steps = shards, total_steps
        request = pb.PrepareRequest(
            order=order,
            files_folder=str(folder),
            group_number=1,
            group_key=bytes(32),
            node_ids=["a"],
            step_deadline_floor_s=600,
            first_step_deadline_s=600,
        )
        self._ask(connect=pb.PeersRequest(peers=[self._ask(prepare=request).prepare]))
        self.restart()

    def restart(self) -> None:
        """Draws the initial weights."""
        self._ask(restore=pb.RestoreRequest())
        self._step = 0

    def run(self, steps: int) -> pb.StretchReply:
        """So many steps."""
        request = pb.StretchRequest(first_step=self._step + 1, last_step=self._step + steps, rate_factor=1)
        reply = self._ask(stretch=request).stretch
        if reply.step != self._step + steps:
            raise ValueError(f"step {reply.step + 1} met a number that is not finite")
        self._step = reply.step
        return reply

    def close(self) -> None:
        """Gives back the worker's memory and port."""
        self._worker.close()

    def _ask(self, **request: Any) -> pb.WorkerReply:
        reply = pb.WorkerReply.FromString(self._worker.handle(pb.WorkerRequest(**request).SerializeToString()))
        if reply.WhichOneof("reply") == "failure":
            raise RuntimeError(reply.failure.text + reply.failure.trace)
        return reply


def write_start(net: Net, folder: Path) -> None:
    """The initial weights in their public layout, and the first epoch's order, for the other side."""
    tensors: dict[str, Any] = dict(build_model(job(net, 1), net.input_shape).named_parameters())
    np.savez(folder / "weights.npz", **tensors)
    np.save(folder / "order.npy", epoch_order(SEED, 0, net.rows))


def sgemm_flops_per_second() -> float:
    """What np.matmul reaches on a large square product."""
    a = np.ones((PEAK_SIZE, PEAK_SIZE), np.float32)
    out = np.empty_like(a)
    np.matmul(a, a, out=out)
    return 2 * PEAK_SIZE**3 / cpu_seconds(lambda: np.matmul(a, a, out=out))


def main(name: str, folder: Path) -> None:
    """Serves turns, of "one" shard or of the "default" number."""
    case = BY_NAME[name]
    counts = {"one": 1, "default": default_shards(case.batch)}
    digest_file = folder / "digest"
    if not digest_file.exists():
        digest_file.write_text(write_table(case, folder))
    digest = digest_file.read_text()
    gauge = MemoryGauge()
    sides: dict[str, Ours] = {}

    def side(variant: str) -> Ours:
        if variant not in sides:
            sides[variant] = Ours(case, folder, digest, counts[variant])
        return sides[variant]

    def start() -> dict[str, int]:
        write_start(case, folder)
        return counts

    def losses(variant: str, steps: int) -> list[float]:
        worker = Ours(case, folder, digest, counts[variant], CURVE_STEPS)
        found = [point.loss for point in worker.run(steps).losses]
        worker.close()
        return found

    def memory(variant: str, steps: int) -> int:
        side(variant)
        return gauge.peak_bytes(lambda: side(variant).run(steps))

    serve(
        {
            "start": start,
            "losses": losses,
            "turn": lambda variant, steps: cpu_seconds(lambda: side(variant).run(steps)),
            "memory": memory,
            "peak": sgemm_flops_per_second,
        }
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
