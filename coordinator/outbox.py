"""All spools as the agent sends them: what is unsent, what is not acknowledged, which runs have ended."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from coordinator import limits
from coordinator.spool import read_events
from lockstep.internal.v1 import agent_service_pb2 as agent

RunId = tuple[str, int]


def run_id(run: agent.RunKey | agent.RunOrder) -> RunId:
    """A run as a key of dictionaries."""
    return run.job_id, run.run_number


@final
@dataclass(slots=True)
class _Spool:
    path: Path
    sent_offset: int = 0
    acknowledged_offset: int = 0
    unacknowledged: deque[tuple[int, int]] = field(default_factory=deque)  # sequence, offset behind it
    ended_sequence: int = 0

    def grew(self) -> bool:
        """Whether there is more than was sent."""
        return self.path.stat().st_size > self.sent_offset


@final
class Outbox:
    """The folder of spools. It reads them; it removes one once the end of its run was acknowledged."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._spools: dict[RunId, _Spool] = {}
        self.look()

    def look(self) -> None:
        """Finds spools that are new."""
        for path in self._folder.glob("*.events"):
            job_id, _, number = path.stem.rpartition("-")
            if job_id and number.isdigit() and (job_id, int(number)) not in self._spools:
                self._spools[job_id, int(number)] = _Spool(path)

    def runs(self) -> list[RunId]:
        """Runs that have a spool."""
        return list(self._spools)

    def path(self, run: RunId) -> Path:
        """The spool of a run, there or not yet."""
        return self._folder / f"{run[0]}-{run[1]}.events"

    def has_ended(self, run: RunId) -> bool:
        """Whether the run's spool holds its end. Reads what is not sent yet, which may take a while: call it in a thread."""
        spool = self._spools.get(run)
        if spool is None:
            return False
        if not spool.ended_sequence:
            with contextlib.suppress(FileNotFoundError):  # its end was acknowledged meanwhile
                for event, _ in read_events(spool.path, spool.sent_offset):
                    if event.WhichOneof("event") == "ended":
                        spool.ended_sequence = event.sequence
        return bool(spool.ended_sequence)

    def rewind(self) -> None:
        """A new stream: what was not acknowledged is sent again."""
        for spool in self._spools.values():
            spool.sent_offset = spool.acknowledged_offset
            spool.unacknowledged.clear()

    def unsent(self) -> Iterator[agent.RunEvent]:
        """The events to be sent now, in order within each run; each counts as sent once it was handed out."""
        self.look()
        for spool in list(self._spools.values()):
            if not spool.grew():
                continue
            for event, end in read_events(spool.path, spool.sent_offset):
                if self.unacknowledged >= limits.UNACKNOWLEDGED_EVENTS:
                    return
                spool.sent_offset = end
                spool.unacknowledged.append((event.sequence, end))
                if event.WhichOneof("event") == "ended":
                    spool.ended_sequence = event.sequence
                yield event

    @property
    def unacknowledged(self) -> int:
        """Events that were sent and not acknowledged."""
        return sum(len(spool.unacknowledged) for spool in self._spools.values())

    def caught_up(self) -> bool:
        """Whether all that the spools hold has been sent."""
        self.look()
        return not any(spool.grew() and any(read_events(spool.path, spool.sent_offset)) for spool in self._spools.values())

    def acknowledge(self, acknowledged: agent.Acknowledge) -> bool:
        """Events up to a number are committed by the server. True when the run's end was among them: its spool is gone."""
        run = run_id(acknowledged.run)
        spool = self._spools.get(run)
        if spool is None:
            return False
        while spool.unacknowledged and spool.unacknowledged[0][0] <= acknowledged.sequence:
            _, spool.acknowledged_offset = spool.unacknowledged.popleft()
        if spool.ended_sequence and acknowledged.sequence >= spool.ended_sequence:
            del self._spools[run]
            spool.path.unlink(missing_ok=True)
            return True
        return False
