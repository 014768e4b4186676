"""Workers in plain processes for the tests: a ShardWorker each behind a pipe, and jobs on made-up data."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.contract.weights import weights_sha256
from lockstep.internal.v1 import worker_pb2 as pb
from lockstep.internal.v1.agent_service_pb2 import RunOrder
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.model_pb2 import Dense, Layer, ModelSpec, Relu
from lockstep.v1.optimization_pb2 import Loss, Momentum, Optimizer, SoftmaxCrossEntropy
from worker.collective.handshake import COORDINATOR, Membership
from worker.nn.shapes import parameter_layout
from worker.shard_worker import ShardWorker
from worker.specs import architecture
from worker.state_transfer import State, fetch_state, give_state
from worker.weights_file import tensors_from_flat

KEY = bytes(range(32))
REPLY_TIMEOUT_S = 60.0


def write_dataset(files: Path, rows: int, inputs: int = 12, classes: int = 4, seed: int = 5) -> str:
    """A dataset version whose classes can be learned; returns its digest."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, classes, rows)
    x = (draw.normal(size=(rows, inputs)) + 2 * draw.normal(size=(classes, inputs))[y]).astype(np.float32)
    return write_columns(files, x, y)


def write_columns(files: Path, x: NDArray[np.float32], y: NDArray[np.int64]) -> str:
    """A dataset version of x (N, ...) and y (N,); returns its digest."""
    digest = hashlib.sha256(x.tobytes()).hexdigest()
    folder = files / "datasets" / digest
    folder.mkdir(parents=True)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    columns = {"x": {"dtype": "float32", "shape": list(x.shape)}, "y": {"dtype": "int64", "shape": list(y.shape)}}
    (folder / "dataset.json").write_text(json.dumps({"format": 1, "columns": columns}))
    return digest


def order(digest: str, *, batch_size: int, shards: int, units: Sequence[int] = (16, 4), **changes: Any) -> RunOrder:
    """A run of a dense net with momentum on a dataset."""
    layers = []
    for at, width in enumerate(units):
        layers.append(Layer(dense=Dense(units=width)))
        if at < len(units) - 1:
            layers.append(Layer(relu=Relu()))
    spec = JobSpec(
        model=ModelSpec(layers=layers),
        loss=Loss(softmax_cross_entropy=SoftmaxCrossEntropy()),
        optimizer=Optimizer(momentum=Momentum(learning_rate=changes.get("learning_rate", 0.05), momentum=0.9)),
        validation_fraction=changes.get("validation_fraction", 0.0),
    )
    spec.training.epochs, spec.training.batch_size, spec.training.shards, spec.training.seed = 3, batch_size, shards, 7
    if changes.get("standardize"):
        spec.preprocessing.standardize.SetInParent()
    made = RunOrder(job_id="test", run_number=1, spec=spec, dataset_digest=digest)
    made.plan.shards, made.plan.total_steps = shards, changes.get("total_steps", 100)
    return made


def host(pipe: Connection, node_id: str) -> None:
    """The main function of a worker's process."""
    worker = ShardWorker(node_id, "127.0.0.1")
    while (request := pipe.recv_bytes()) != b"end":
        pipe.send_bytes(worker.handle(request))
    worker.close()


class Workers:
    """A group of ShardWorkers, a process each, forked from a clean process; `nodes` are their node ids by rank."""

    def __init__(self, nodes: Sequence[str]) -> None:
        # A clean server process that has imported all this once forks the workers: they start at once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.worker.worker_processes"])
        self.nodes = list(nodes)
        self.pipes: list[Connection] = []
        self.processes = []
        self.group_number = 0
        for node in nodes:
            here, there = context.Pipe()
            process = context.Process(target=host, args=(there, node), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.kill()
            process.join(10)
            pipe.close()

    def send(self, rank: int, **request: Any) -> None:
        """Sends one request."""
        self.pipes[rank].send_bytes(pb.WorkerRequest(**request).SerializeToString())

    def receive(self, rank: int) -> pb.WorkerReply:
        """The next reply of a worker, within a deadline."""
        assert self.pipes[rank].poll(REPLY_TIMEOUT_S), f"worker {rank} did not answer"
        return pb.WorkerReply.FromString(self.pipes[rank].recv_bytes())

    def ask(self, ranks: Sequence[int] | None = None, **request: Any) -> list[pb.WorkerReply]:
        """Sends a request to all (or `ranks`) and returns their replies; none may be a failure."""
        chosen = range(len(self.nodes)) if ranks is None else ranks
        for rank in chosen:
            self.send(rank, **request)
        replies = [self.receive(rank) for rank in chosen]
        for reply in replies:
            assert reply.WhichOneof("reply") != "failure", reply.failure.text + reply.failure.trace
        return replies

    def form(self, files: Path, run: RunOrder, nodes: Sequence[str] | None = None, floor_s: float = 20.0) -> None:
        """Prepares and connects the first len(nodes) workers as a new group, all unless given."""
        self.run, self.nodes = run, list(nodes or self.nodes)
        self.group_number += 1
        for rank in range(len(self.nodes)):
            request = pb.PrepareRequest(
                order=run,
                files_folder=str(files),
                group_number=self.group_number,
                group_key=KEY,
                rank=rank,
                node_ids=self.nodes,
                step_deadline_floor_s=floor_s,
                first_step_deadline_s=floor_s,
            )
            self.send(rank, prepare=request)
        replies = [self.receive(rank) for rank in range(len(self.nodes))]
        for reply in replies:
            assert reply.WhichOneof("reply") == "prepare", reply.failure.text + reply.failure.trace
        self.endpoints = [reply.prepare for reply in replies]
        self.ask(connect=pb.PeersRequest(peers=self.endpoints))

    def restore(self, step: int = 0, folder: str = "") -> None:
        """Sets the state."""
        self.ask(restore=pb.RestoreRequest(step=step, checkpoint_folder=folder))

    @property
    def coordinator(self) -> Membership:
        """Of the group as it is."""
        return Membership(KEY, self.run.run_number, self.group_number, COORDINATOR)

    def give(self, step: int, whole: dict[str, Any], same_node: bool = True) -> None:
        """Puts the state of a snapshot into the workers."""
        for rank, reply in enumerate(self.ask(receive=pb.ReceiveRequest(step=step))):
            give_state(whole, step, reply.receive, self.endpoints[rank], same_node, self.coordinator, rank)
        self.ask(restore=pb.RestoreRequest(step=step, received=True))

    def stretch(self, first: int, last: int, rate_factor: float = 1.0) -> list[pb.StretchReply]:
        """Takes steps."""
        request = pb.StretchRequest(first_step=first, last_step=last, rate_factor=rate_factor)
        return [reply.stretch for reply in self.ask(stretch=request)]

    def state(self, step: int, same_node: bool = True) -> State:
        """A snapshot."""
        state: State = {}
        for rank, reply in enumerate(self.ask(snapshot=pb.SnapshotRequest(step=step))):
            state |= fetch_state(reply.snapshot, self.endpoints[rank], same_node, self.coordinator, rank)
        return state


def vectors(state: State) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The whole vectors out of the ranges of a snapshot."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for (name, first, _), array in state.items():
        found.setdefault(name, []).append((first, array))
    return {name: np.concatenate([a for _, a in sorted(parts, key=lambda p: p[0])]) for name, parts in found.items()}


def weights_hash(run: RunOrder, inputs: int, state: State) -> str:
    """weights_sha256 of a snapshot's parameters."""
    layout = parameter_layout(architecture(run.spec.model, (inputs,)))
    tensors = tensors_from_flat(layout, vectors(state)["parameters"])
    return weights_sha256((name, tensor.data) for name, tensor in tensors.items())
