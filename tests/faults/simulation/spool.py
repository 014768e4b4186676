"""The spool of a simulated run: events that reach the API server as soon as they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from coordinator import limits
from coordinator.spool import SpoolFull, SpoolWriter
from lockstep.internal.v1 import agent_service_pb2 as agent
from tests.faults.simulation.disk import Disk
from tests.faults.simulation.stage import Stage


@final
class SimulatedSpool(SpoolWriter):
    """Every append is an act: the coordinator may die before it."""

    def __init__(self, stage: Stage, disk: Disk, order: agent.RunOrder, heard: Callable[[agent.RunEvent], None]) -> None:
        self._stage, self._disk, self._heard = stage, disk, heard
        self._key = agent.RunKey(job_id=order.job_id, run_number=order.run_number)
        self.events: list[agent.RunEvent] = []
        self.sequence, self.ended = 0, False

    def append(self, event: agent.RunEvent, patience_s: float | None = None) -> int:
        kind = event.WhichOneof("event") or ""
        self._stage.faults.act(f"the word {kind}")
        if self._disk.full_until > self._stage.clock.now:
            if kind == "progress":
                return 0
            self._stage.clock.to(min(self._disk.full_until, self._stage.clock.now + limits.SPOOL_FULL_S))
            if self._disk.full_until > self._stage.clock.now:
                raise SpoolFull("no space for the run's events")
        self.sequence += 1
        self.ended = kind == "ended"
        event.sequence = self.sequence
        event.run.CopyFrom(self._key)
        self.events.append(event)
        if self._stage.diary.kept:
            self._stage.say("run", _line(event))
        self._heard(event)
        return self.sequence

    def sync(self) -> None:
        self._stage.faults.act("fsync of the spool")

    def close(self) -> None:
        return None


def _line(event: agent.RunEvent) -> str:
    kind = event.WhichOneof("event") or ""
    text = str(getattr(event, kind)).replace("\n", " ")
    return f"{kind}: {text[:300]}"
