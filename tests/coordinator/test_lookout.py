"""The look at nodes: one that does not answer holds up neither the others nor an order."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from coordinator import framing
from coordinator.group.cluster import Cluster
from coordinator.group.group import SHARD_WORKER, WorkerGroup
from coordinator.preflight import Needs, write_marker
from coordinator.run import Lookout
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import cluster_service_pb2 as cluster


class Three(Cluster):
    """Nodes a, b, c that answer as they are told to."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str] | None] = {"a": [], "b": ["no space"], "c": None}
        self.prepared: list[str] = []

    def attached(self) -> AbstractContextManager[None]:
        return nullcontext()

    def nodes(self) -> list[cluster.Node]:
        return [cluster.Node(node_id=name, address=name, slots=2) for name in self.answers]

    def lacks(self, node_id: str, needs: Needs, deadline_s: float) -> list[str] | None:
        return self.answers[node_id]

    def prepare(self, nodes: Sequence[cluster.Node]) -> None:
        self.prepared = [node.node_id for node in nodes]

    def group(self, handler: str = SHARD_WORKER) -> WorkerGroup:
        raise NotImplementedError


def test_a_node_counts_once_it_has_answered(tmp_path: Path) -> None:
    write_marker(tmp_path, "mark")
    nodes, out = Three(), io.BytesIO()
    lookout = Lookout(nodes, tmp_path, out)

    def said() -> agent.Capacity:
        (frame,) = framing.Frames().feed(out.getvalue())
        out.seek(0)
        out.truncate()
        return agent.Capacity.FromString(frame)

    assert not lookout.report()
    capacity = said()
    assert [node.node_id for node in capacity.nodes] == nodes.prepared == ["a", "b"]
    assert list(capacity.problems) == ["node b: no space"]
    nodes.answers["c"] = ["did not answer"]
    assert lookout.report()
    capacity = said()
    assert [node.node_id for node in capacity.nodes] == ["a", "b", "c"] and capacity.problems[1] == "node c: did not answer"


def test_nothing_is_said_before_the_first_answer(tmp_path: Path) -> None:
    write_marker(tmp_path, "mark")
    nodes, out = Three(), io.BytesIO()
    nodes.answers = {"c": None}
    assert not Lookout(nodes, tmp_path, out).report() and not out.getvalue()


def test_a_node_in_order_is_not_looked_at_again(tmp_path: Path) -> None:
    write_marker(tmp_path, "mark")
    nodes, out = Three(), io.BytesIO()
    nodes.answers = {"a": None}
    assert Lookout(nodes, tmp_path, out, ["a", "gone"]).report()
    assert nodes.prepared == ["a"]
