"""Links between nodes through a proxy that spoils them: slower, or with a new group, and the same bits."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from coordinator import limits
from coordinator.group.group import Replies
from coordinator.group.local import LocalGroup, LocalNode
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import worker_pb2
from lockstep.v1.model_pb2 import BatchNorm, Dense, Dropout, Layer, ModelSpec, Relu
from lockstep.v1.optimization_pb2 import Adam, Clipping, CosineSchedule, Optimizer, Schedule
from tests.coordinator.one_run import curve, run_once
from tests.coordinator.proxy import Proxy
from tests.coordinator.small_job import CLASSES, make_order

pytestmark = pytest.mark.timeout(90)

Run = tuple[agent.RunEnded, list[agent.RunEvent]]
# Addresses of workers on two nodes, and those under which the proxy stands for them.
NODES = (LocalNode("a", "127.0.0.1"), LocalNode("a", "127.0.0.1"), LocalNode("b", "127.0.0.2"))
STANDS_FOR = {"a": "127.0.1.1", "b": "127.0.1.2"}


def order_of(files: Path, workers: int, units: int = 16) -> agent.RunOrder:
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Run]:
    """The job on one worker, by the units of its hidden layer."""
    done: dict[int, Run] = {}

    def run(units: int) -> Run:
        if units not in done:
            files = tmp_path_factory.mktemp("alone")
            done[units] = run_once(order_of(files, 1, units), files)
        return done[units]

    return run


class Through:
    """A run of three workers on two nodes whose links go through a proxy."""

    def __init__(
        self,
        files: Path,
        proxy: Proxy,
        nodes: Sequence[LocalNode] = NODES,
        stands_for: Mapping[str, str] = STANDS_FOR,
        units: int = 16,
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
        self.ended, self.events = run_once(order_of(files, 3, units), files, make_group=lambda: group)
        self.seconds = time.monotonic() - began
        assert threading.active_count() == threads

    def is_like(self, alone: Run) -> None:
        """The weights and curves are those of one worker."""
        assert self.ended.outcome == agent.RunEnded.SUCCEEDED, self.ended.reason
        assert self.ended.result.weights_sha256 == alone[0].result.weights_sha256
        assert curve(self.events) == curve(alone[1])

    @property
    def groups(self) -> list[int]:
        """The sizes of the groups that were formed."""
        return [len(event.started.members) for event in self.events if event.WhichOneof("event") == "started"]

    @property
    def told(self) -> list[str]:
        """What people were told of failures."""
        return [event.notice.text for event in self.events if event.notice.reason.startswith("WORKER_")]


@pytest.mark.parametrize(
    "spoilt",
    [{}, {"delay_s": 0.005}, {"piece_bytes": 1}, {"piece_bytes": 7, "buffer_bytes": 1024}],
    ids=["untouched", "5 ms", "single bytes", "short writes"],
)
def test_slow_links_give_the_same_bits(tmp_path: Path, alone: Callable[[int], Run], spoilt: dict[str, Any]) -> None:
    with Proxy(**spoilt) as proxy:
        run = Through(tmp_path, proxy)
        assert proxy.forwarded_bytes > sum(reply.sent_bytes for reply in run.stretches) > 0
    run.is_like(alone(16))
    assert run.groups == [3] and not run.told
    # Each worker says what crossed; what one sent another received.
    assert sum(reply.sent_bytes for reply in run.stretches) == sum(reply.received_bytes for reply in run.stretches)


@pytest.mark.parametrize("bytes_before", [1500, 4001, 20_003])
def test_links_that_are_reset_cost_a_group_and_nobody(tmp_path: Path, alone: Callable[[int], Run], bytes_before: int) -> None:
    with Proxy() as proxy:
        proxy.after(bytes_before, proxy.reset)
        run = Through(tmp_path, proxy)
    run.is_like(alone(16))
    assert set(run.groups) == {3} and len(run.groups) == 2 and len(run.told) == 1, (run.groups, run.told)
    assert "worker" in run.told[0] and "with 3 of 3 workers" in run.told[0]


def test_a_link_that_is_silent_for_a_while_is_waited_for(tmp_path: Path, alone: Callable[[int], Run]) -> None:
    with Proxy() as proxy:
        proxy.after(30_001, lambda: proxy.hold(1.0))
        run = Through(tmp_path, proxy)
    run.is_like(alone(16))
    assert run.groups == [3] and run.seconds > 1.0


def test_a_dead_link_is_named_at_the_deadline(
    tmp_path: Path, alone: Callable[[int], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STEP_DEADLINE_FLOOR_S", 1.0)
    monkeypatch.setattr(limits, "FIRST_STEP_DEADLINE_S", 1.0)
    with Proxy() as proxy:
        proxy.after(30_001, lambda: proxy.hold(4.0))
        run = Through(tmp_path, proxy)
    run.is_like(alone(16))
    assert set(run.groups) == {3} and len(run.groups) == 2
    assert any(
        f"worker {rank} (node {node}) did not reach step" in run.told[0] for rank, node in ((0, "a"), (1, "a"), (2, "b"))
    )


@pytest.fixture
def namespaces() -> Iterator[tuple[tuple[LocalNode, ...], dict[str, str]]]:
    """Two network namespaces, each joined by a veth pair to this one, where the proxy stands; they cannot reach each other."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces want root: run this test with sudo, or in a container of your own")
    mark = f"ls{os.getpid()}"

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"

    nodes, stands_for = {}, {}
    with ExitStack() as stack:
        for number, node in enumerate("ab", 1):
            space, inside, outside = f"{mark}{node}", f"{mark}{node}i", f"{mark}{node}o"
            ip("netns", "add", space)
            stack.callback(ip, "netns", "del", space)  # the pair goes with it
            ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", space)
            ip("address", "add", f"10.213.{number}.254/24", "dev", outside)
            ip("link", "set", outside, "up")
            ip("-n", space, "address", "add", f"10.213.{number}.1/24", "dev", inside)
            ip("-n", space, "link", "set", inside, "up")
            ip("-n", space, "link", "set", "lo", "up")
            nodes[node] = LocalNode(node, f"10.213.{number}.1", ("ip", "netns", "exec", space))
        # A peer is in the other namespace, and can dial the proxy only at its own end.
        stands_for = {"a": "10.213.2.254", "b": "10.213.1.254"}
        yield (nodes["a"], nodes["a"], nodes["b"]), stands_for


def test_two_network_namespaces_with_a_link_that_is_cut(
    tmp_path: Path, alone: Callable[[int], Run], namespaces: tuple[tuple[LocalNode, ...], dict[str, str]]
) -> None:
    nodes, stands_for = namespaces
    with Proxy(delay_s=0.005) as proxy:
        proxy.after(200_001, lambda: proxy.hold(5.0))
        run = Through(tmp_path, proxy, nodes, stands_for, units=256)
    run.is_like(alone(256))
    assert run.groups == [3] and not run.told and run.seconds > 5.0
