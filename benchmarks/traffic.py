"""What each worker of a group sends in a step, by the exchange layout that its reduction follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from worker.collective.buckets import Range, buckets
from worker.collective.layout import ExchangeLayout
from worker.collective.shared_memory import REPORT_FLOATS

REPORT_BYTES = 8 * REPORT_FLOATS
FLOAT_BYTES = 4


@final
@dataclass(frozen=True)
class Traffic:
    """Messages and payload bytes (without the frames' headers) that each worker sends to other nodes in a step, by rank."""

    messages: list[int]
    sent_bytes: list[int]

    @classmethod
    def of(cls, layout: ExchangeLayout, finished_ranges: Sequence[Range] = ()) -> Traffic:
        """Of a step whose shards all have rows and whose update is one pass; `finished_ranges` are those of the model, whose
        buckets go out during the backward pass, each as a message of its own."""
        messages, sent_bytes = [0] * layout.workers, [0] * layout.workers
        floats = [end - first for first, end in layout.chunks]
        early = [sum(bool(bucket.within(*chunk)) for bucket in buckets(finished_ranges)[:-1]) for chunk in layout.chunks]
        for node in layout.members:
            sums = len(layout.node_subtrees(node, layout.shards))
            for owner in range(layout.workers):
                if layout.nodes[owner] == node:
                    continue
                carrier = layout.carrier(node, owner)
                messages[carrier] += early[owner] + 1  # sums of the owner's chunk; the last has the node's report
                sent_bytes[carrier] += REPORT_BYTES + sums * FLOAT_BYTES * floats[owner]
                if floats[owner]:
                    messages[owner] += 1  # the chunk's parameters
                    sent_bytes[owner] += FLOAT_BYTES * floats[owner]
        return cls(messages, sent_bytes)

    def node_bytes(self, layout: ExchangeLayout) -> int:
        """What the busiest node sends in a step."""
        return max(sum(self.sent_bytes[rank] for rank in ranks) for ranks in layout.members.values())
