"""A run whose workers are on nodes that a proxy lies between, as the job that shows whether a link changed a bit."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coordinator.group.group import Replies
from coordinator.group.local import LocalGroup, LocalNode
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import worker_pb2
from lockstep.v1.model_pb2 import BatchNorm, Dense, Dropout, Layer, ModelSpec, Relu
from lockstep.v1.optimization_pb2 import Adam, Clipping, CosineSchedule, Optimizer, Schedule
from tests.coordinator.one_run import curve, run_once
from tests.coordinator.proxy import Proxy
from tests.coordinator.small_job import CLASSES, make_order

Run = tuple[agent.RunEnded, list[agent.RunEvent]]
NODE_IDS = "abc"
UNITS = 16


def order_of(files: Path, workers: int, units: int = UNITS) -> agent.RunOrder:
    """12 steps of what could depend on how work is split; the last batch of an epoch has 32 of 64 rows."""
    order = make_order(files, epochs=4, workers=workers)
    hidden = [
        Layer(dense=Dense(units=units)),
        Layer(batch_norm=BatchNorm()),
        Layer(relu=Relu()),
        Layer(dropout=Dropout(rate=0.2)),
    ]
    order.spec.model.CopyFrom(ModelSpec(layers=[*hidden, Layer(dense=Dense(units=CLASSES))]))
    order.spec.optimizer.CopyFrom(
        Optimizer(
            adam=Adam(learning_rate=0.01),
            clipping=Clipping(global_norm=0.5),
            schedule=Schedule(cosine=CosineSchedule(floor=0.1), warmup_steps=3),
        )
    )
    return order


@cache
def alone(units: int = UNITS) -> Run:
    """The job on one worker, run once a process for each width of its hidden layer."""
    with TemporaryDirectory(prefix="lockstep-links-") as folder:
        return run_once(order_of(Path(folder), 1, units), Path(folder))


def nodes_of(node_ids: str) -> list[LocalNode]:
    """The nodes of workers by rank, each letter a node with an address of its own on loopback."""
    return [LocalNode(node_id, f"127.0.0.{NODE_IDS.index(node_id) + 1}") for node_id in node_ids]


def stands_for() -> dict[str, str]:
    """The addresses under which the proxy stands for each node; other processes take others, so that no ports meet."""
    pid = os.getpid()
    return {node_id: f"127.{1 + pid // 250 % 250}.{pid % 250}.{at}" for at, node_id in enumerate(NODE_IDS, 1)}


class Through:
    """A run of workers on nodes whose links go through a proxy."""

    def __init__(
        self,
        files: Path,
        proxy: Proxy,
        nodes: Sequence[LocalNode],
        stands_for: Mapping[str, str],
        units: int = UNITS,
    ) -> None:
        self.stretches: list[worker_pb2.StretchReply] = []
        group = LocalGroup(nodes=nodes)
        hosts = {node.node_id: node.host for node in nodes}
        real = group.call

        def call(requests: Mapping[int, bytes], *arguments: Any) -> Replies:
            asked = {rank: worker_pb2.WorkerRequest.FromString(request) for rank, request in requests.items()}
            for request in asked.values():
                if request.HasField("prepare"):
                    request.prepare.advertised_host = stands_for[request.prepare.node_ids[request.prepare.rank]]
            replies = real({rank: request.SerializeToString() for rank, request in asked.items()}, *arguments)
            for rank, data in replies.by_rank.items():
                reply = worker_pb2.WorkerReply.FromString(data)
                if reply.HasField("prepare"):
                    node = asked[rank].prepare.node_ids[rank]
                    assert reply.prepare.host == stands_for[node]
                    proxy.forward((reply.prepare.host, reply.prepare.port), (hosts[node], reply.prepare.port))
                if reply.HasField("stretch"):
                    self.stretches.append(reply.stretch)
            return replies

        group.call = call  # type: ignore[assignment, method-assign]
        began, threads = time.monotonic(), threading.active_count()
        order = order_of(files, len(nodes), units)
        self.units, self.ended, self.events = units, *run_once(order, files, make_group=lambda: group)
        self.seconds = time.monotonic() - began
        assert threading.active_count() == threads

    def is_like_alone(self) -> None:
        """The weights and curves are those of one worker."""
        ended, events = alone(self.units)
        assert self.ended.outcome == agent.RunEnded.SUCCEEDED, self.ended.reason
        assert self.ended.result.weights_sha256 == ended.result.weights_sha256, "the weights differ"
        assert curve(self.events) == curve(events), "the curves differ"

    @property
    def groups(self) -> list[int]:
        """The sizes of the groups that were formed."""
        return [len(event.started.members) for event in self.events if event.WhichOneof("event") == "started"]

    @property
    def told(self) -> list[str]:
        """What people were told of failures."""
        return [event.notice.text for event in self.events if event.notice.reason.startswith("WORKER_")]
