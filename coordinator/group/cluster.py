"""The interface of what carries workers: attach to it, list its nodes, look at one, make a group on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

from coordinator.group.group import SHARD_WORKER, WorkerGroup
from coordinator.preflight import Needs
from lockstep.v1 import cluster_service_pb2 as cluster


class ClusterUnreachable(Exception):
    """The cluster does not answer; the text says where it was sought and what to do."""


class Cluster(ABC):
    """Where the workers of this coordinator will live."""

    @abstractmethod
    def attached(self) -> AbstractContextManager[None]:
        """Attaches this process while the context lasts. Raises ClusterUnreachable."""

    @abstractmethod
    def nodes(self) -> list[cluster.Node]:
        """The living nodes with worker slots. Raises ClusterUnreachable."""

    @abstractmethod
    def lacks(self, node_id: str, needs: Needs, deadline_s: float) -> list[str] | None:
        """What a node lacks, looked at on that node: sentences with remedies.

        Never waits: None until the node has answered, or has had `deadline_s` to do so.
        """

    @abstractmethod
    def prepare(self, nodes: Sequence[cluster.Node]) -> None:
        """Keeps workers ready on the nodes for the group that will be made; never waits. To be called every second."""

    @abstractmethod
    def group(self, handler: str = SHARD_WORKER) -> WorkerGroup:
        """A new group without workers; its processes will host the handler."""
