"""ClusterService: what the API server knows of the cluster."""

from __future__ import annotations

from typing import Any, final

from lockstep.contract.arithmetic import ARITHMETIC_VERSION
from lockstep.v1.cluster_service_pb2 import Cluster, GetClusterRequest
from lockstep.v1.cluster_service_pb2_grpc import ClusterServiceServicer
from services import VERSION
from services.clock import timestamp
from services.runs.desk import AgentDesk
from services.runs.dispatch import Dispatcher


@final
class ClusterServicer(ClusterServiceServicer):
    """The one verb on the cluster."""

    def __init__(self, desk: AgentDesk, dispatcher: Dispatcher) -> None:
        self._desk, self._dispatcher = desk, dispatcher
        self._began = desk.since

    async def GetCluster(self, request: GetClusterRequest, context: Any) -> Cluster:
        never = not self._desk.connected and self._desk.since == self._began
        return Cluster(
            server_version=VERSION,
            arithmetic_version=ARITHMETIC_VERSION,
            agent_connected=self._desk.connected,
            agent_since=None if never else timestamp(self._desk.since),
            slots=self._dispatcher.slots,
            slots_in_use=self._dispatcher.in_use,
            nodes=self._dispatcher.nodes,
        )
