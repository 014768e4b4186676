"""The traffic that is worked out for thousands of workers is what the transport counts with eight; and it stays flat."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scale import ODD_GROUPS, Net, Scale
from benchmarks.traffic import Traffic
from tests.worker.collective.memory_group import Group, take_turns


@pytest.fixture(autouse=True)
def threads_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    take_turns(monkeypatch)


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize(
    ("nodes", "shards"),
    [("aa", 2), ("ab", 2), ("aab", 8), ("aba", 5), ("abc", 8), ("aabb", 4), ("aabbccdd", 8), ("aaaabbbb", 64), ("abcdefgh", 9)],
)
def test_the_transport_carries_what_was_worked_out(
    monkeypatch: pytest.MonkeyPatch, nodes: str, shards: int, overlaps: bool
) -> None:
    size = 5 * 4096 + 77  # of six blocks: some of eight workers own none
    finished = [(9000, size), (4096, 9000), (0, 4096)] if overlaps else []
    monkeypatch.setattr("worker.collective.buckets._BUCKET_FLOATS", 4096)
    group = Group(list(nodes), shards, size, finished_ranges=finished)
    group.step(1, shards, [np.ones(size, np.float32)] * shards, [0.0] * shards, [True] * len(nodes))
    traffic = Traffic.of(group.layout, finished)
    for rank in range(len(nodes)):
        assert traffic.messages[rank] == group.network.messages_sent[rank]
        assert traffic.sent_bytes[rank] == group.network.bytes_sent[rank]


def test_no_number_of_nodes_makes_a_worker_send_more_than_a_vector_out_and_one_back() -> None:
    net = Net.of((2048, 2048, 10))
    shares = [Scale.of(net, 8 * nodes, nodes).share for nodes in (1, 2, 8, 32)]
    assert shares[0] == 0 and shares[1] < shares[2] < shares[3] < 1.25
    workers, nodes = ODD_GROUPS[0]
    assert Scale.of(net, workers, nodes).missed() == [f"bytes {Scale.of(net, workers, nodes).share:.2f} > 1.25"]


def test_the_model_of_a_network_is_bytes_over_rate_and_a_cost_a_message() -> None:
    scale = Scale(
        workers=16,
        nodes=2,
        parameters=10**7,
        layout_s=0.1,
        part_s=0.1,
        messages=10,
        worker_bytes=10**7,
        node_bytes=125 * 10**6,
        halving=True,
    )
    assert scale.exchange_s(10) == pytest.approx(0.1 + 10 * 50e-6)
    assert scale.efficiency(10) == pytest.approx(0.0384 / (0.0384 + 0.1005))
