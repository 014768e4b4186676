"""Messages and bytes of groups that no machine here can hold, by the layout that workers use. Exit status 1 where they grow.

Nothing is sent. The last columns are a model, not a measurement: a node's bytes over its network's rate and a fixed cost of
each message, no overlap of exchange and computation, no congestion.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from google.protobuf.json_format import ParseDict

from benchmarks.engine_race.cases import dense_layers
from benchmarks.machine import machine
from benchmarks.tables import say, table, verdict
from benchmarks.traffic import FLOAT_BYTES, Traffic
from lockstep.v1.model_pb2 import ModelSpec
from worker.collective.buckets import Range
from worker.collective.layout import ExchangeLayout, block_borders
from worker.nn.passes import Network
from worker.nn.shapes import layer_shapes, layout_of
from worker.specs import MeanSquaredErrorRecord, architecture

WIDTHS = (8192, 8192, 8192, 10)  # 134 million parameters
GROUPS = (
    (2, 1),
    (2, 2),
    (8, 1),
    (8, 2),
    (16, 2),
    (32, 4),
    (64, 8),
    (128, 16),
    (512, 64),
    (1024, 128),
    (2048, 256),
    (4096, 512),
)
ODD_GROUPS = ((24, 3), (56, 7), (384, 48), (4000, 500))  # shards that no halving gives to nodes: more subtrees, more bytes
FLAT = 1.25  # the busiest worker's bytes over 2 P / (workers of a node), which no number of nodes may pass
LAYOUT_S = 1.0
NETWORKS_GBIT = (10, 100)
MESSAGE_S = 50e-6  # a message's cost to its sender, about what a small one takes over loopback
WORKER_FLOPS = 100e9
ROWS = 64  # of a worker's part of a mini-batch

HEADS = (
    *("workers", "nodes", "messages a worker sends", "MiB a worker sends", "over 2 P / workers of a node", "at most"),
    *("layout, s", "one worker's part, ms", *(f"exchange at {rate} Gbit/s, s" for rate in NETWORKS_GBIT)),
    *(*(f"step spent computing at {rate} Gbit/s" for rate in NETWORKS_GBIT), "bounds"),
)


@final
@dataclass(frozen=True)
class Net:
    """A dense net as the exchange sees it: where chunks may end, its parameters with their gaps, and which ranges of them a
    backward pass completes one after the other."""

    borders: list[int]
    parameters: int
    finished_ranges: tuple[Range, ...]

    @classmethod
    def of(cls, widths: Sequence[int]) -> Net:
        """Without its weights: their memory is never touched."""
        shapes = layer_shapes(architecture(ParseDict({"layers": dense_layers(*widths[1:])}, ModelSpec()), tuple(widths[:1])))
        layout = layout_of(shapes)
        network = Network(MeanSquaredErrorRecord(), shapes, layout, np.empty(layout.size, np.float32))
        borders = block_borders([(entry.offset, entry.offset + entry.size) for entry in layout.entries], layout.size)
        return cls(borders, layout.size, network.finished_ranges)


@final
@dataclass(frozen=True)
class Scale:
    """A group of equal nodes, one shard for each worker; `part_s` is what one worker asks of the layout."""

    workers: int
    nodes: int
    parameters: int
    layout_s: float
    part_s: float
    messages: int
    worker_bytes: int
    node_bytes: int
    halving: bool

    @classmethod
    def of(cls, net: Net, workers: int, nodes: int, halving: bool = True) -> Scale:
        """Builds the layout and counts."""
        names = [f"node-{rank * nodes // workers}" for rank in range(workers)]
        began = time.perf_counter()
        layout = ExchangeLayout(net.borders, workers, names)
        built = time.perf_counter()
        rank = workers // 2
        layout.carried(rank), layout.carriers(rank), layout.linked(rank)
        for node in layout.members:
            layout.node_subtrees(node, workers)
        asked = time.perf_counter()
        traffic = Traffic.of(layout, net.finished_ranges)
        return cls(
            *(workers, nodes, net.parameters, built - began, asked - built),
            *(max(traffic.messages), max(traffic.sent_bytes), traffic.node_bytes(layout), halving),
        )

    @property
    def share(self) -> float:
        """The busiest worker's bytes over those of a vector out and a vector back, divided among a node's workers."""
        return self.worker_bytes / (2 * FLOAT_BYTES * self.parameters * self.nodes / self.workers)

    def exchange_s(self, gbit_per_s: float) -> float:
        """The model's time of a step's exchange."""
        return self.node_bytes / (gbit_per_s * 1e9 / 8) + self.messages * MESSAGE_S

    def efficiency(self, gbit_per_s: float) -> float:
        """The part of a step that computes: a dense net's products, 6 P operations a row."""
        compute_s = 6 * self.parameters * ROWS / WORKER_FLOPS
        return compute_s / (compute_s + self.exchange_s(gbit_per_s))

    def missed(self) -> list[str]:
        """What passed its bound, in words."""
        found = []
        if self.halving and self.share > FLAT:
            found.append(f"bytes {self.share:.2f} > {FLAT}")
        if self.layout_s >= LAYOUT_S:
            found.append(f"layout {self.layout_s:.2f} s >= {LAYOUT_S:g} s")
        return found

    def cells(self) -> list[str]:
        """A row of the table."""
        return [
            *(f"{self.workers:,}", f"{self.nodes}", f"{self.messages:,}", f"{self.worker_bytes / 2**20:,.1f}"),
            *(f"{self.share:.2f}", f"{FLAT}" if self.halving else ""),
            *(f"{self.layout_s:.3f}", f"{1e3 * self.part_s:.1f}"),
            *(f"{self.exchange_s(rate):.2f}" for rate in NETWORKS_GBIT),
            *(f"{self.efficiency(rate):.0%}" for rate in NETWORKS_GBIT),
            verdict(self.missed()),
        ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/scale.py", description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="of the dense net (default %(default)s)")
    options = parser.parse_args()
    net = Net.of(options.widths)
    scales = []
    for groups, halving in ((GROUPS, True), (ODD_GROUPS, False)):
        for workers, nodes in groups:
            scales.append(Scale.of(net, workers, nodes, halving))
            say(f"{workers} workers on {nodes} nodes: {scales[-1].worker_bytes / 2**20:,.1f} MiB a worker")
    speed = f"{ROWS} rows a worker at {WORKER_FLOPS / 1e9:g} GFLOP/s"
    print(f"{machine()}; {list(options.widths)}, {net.parameters:,} parameters, {speed}")
    print(table(HEADS, [scale.cells() for scale in scales]))
    return 1 if any(scale.missed() for scale in scales) else 0


if __name__ == "__main__":
    sys.exit(main())
