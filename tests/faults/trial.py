"""A trial: the runs of one job as real processes, without Ray, under a stand-in for agent and API server.

The stand-in does what those two do to a run: it starts a coordinator with an order, takes the events out of its spool,
commits and acknowledges them, gives a run that ended without a last word one, and starts the next run where it was lost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from coordinator import framing
from coordinator.exit_status import out_of_memory_kills
from coordinator.outbox import Outbox
from coordinator.preflight import write_marker
from coordinator.reconciler import said_of
from coordinator.spool import append_lost, spool_path
from lockstep.internal.v1 import agent_service_pb2 as agent
from tests.coordinator.api_server import ApiServer
from tests.faults.case import Case, Fired
from tests.faults.fault_job import fault_order
from tests.leftovers import segments
from worker.failpoints import ALLOW

MOST_RUNS = 8
POLL_S = 0.01
# Tests wait for a peer no longer than this, where people would wait 30 s.
DEADLINES = {"LOCKSTEP_STEP_DEADLINE_FLOOR_S": "2", "LOCKSTEP_FIRST_STEP_DEADLINE_S": "10"}


@final
@dataclass(slots=True)
class Outcome:
    """What a trial left: its orders and their events by run, how coordinators ended, which points fired."""

    case: Case
    folder: Path
    orders: list[agent.RunOrder] = field(default_factory=list)
    events: list[list[agent.RunEvent]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    sessions: list[int] = field(default_factory=list)
    segments_before: set[str] = field(default_factory=segments)
    fired: list[Fired] = field(default_factory=list)
    seconds: float = 0.0
    in_time: bool = True

    @property
    def files(self) -> Path:
        """The files/ folder."""
        return self.folder / "files"

    @property
    def log(self) -> str:
        """What the processes wrote."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def ended(self) -> agent.RunEnded:
        """How the last run ended."""
        return self.events[-1][-1].ended

    @property
    def said(self) -> list[str]:
        """All that people are told of faults."""
        return [
            event.notice.text or event.recovering.reason or event.ended.reason for events in self.events for event in events
        ]

    def told(self, word: str) -> list[str]:
        """The notices under a word."""
        return [event.notice.text for events in self.events for event in events if event.notice.reason == word]


def run_trial(case: Case, folder: Path) -> Outcome:
    """Has the job run to its end, in as many runs as it takes, but no longer than the case allows."""
    outcome = Outcome(case, folder)
    write_marker(outcome.files, "faults")
    store = ApiServer()
    began = time.monotonic()
    with (folder / "log").open("ab") as log:
        for number in range(1, MOST_RUNS + 1):
            run = _Run(outcome, store, number, log.fileno(), began + case.deadline_s)
            run.carry_out()
            if not outcome.in_time or outcome.ended.outcome != agent.RunEnded.LOST:
                break
    outcome.violations = store.violations
    outcome.seconds = time.monotonic() - began
    outcome.fired = [fired for fired, _ in _fired(outcome.folder / "log", 0)]
    return outcome


@final
class _Run:
    """One run of the job, from order to end."""

    def __init__(self, outcome: Outcome, store: ApiServer, number: int, log: int, deadline: float) -> None:
        self._outcome, self._store, self._deadline = outcome, store, deadline
        case, files = outcome.case, outcome.files
        self._order = fault_order(
            files, workers=case.workers, least=case.least, run_number=number, epochs=case.epochs, points=case.points
        )
        for events in outcome.events:
            for event in events:
                self._order.furthest_step = max(self._order.furthest_step, event.progress.progress.step)
                if event.HasField("checkpoint"):
                    self._order.fingerprint = self._order.fingerprint or _fingerprint(events)
        outcome.orders.append(self._order)
        self._key = (self._order.job_id, number)
        self._outbox = Outbox(files / "spool")
        self._log_at = (outcome.folder / "log").stat().st_size
        self._stopped: dict[int, float] = {}
        self._out_of_memory = out_of_memory_kills()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "coordinator.run", "--files", str(files), "--group", "local"),
                *("--slots", str(case.workers), "--parent", str(os.getpid())),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={
                **os.environ,
                **DEADLINES,
                ALLOW: "1",
                "LOCKSTEP_LOCAL_WORKER_ENV": json.dumps(case.environments),
                "LOCKSTEP_LOCAL_NODES": ",".join(case.nodes),
            },
            start_new_session=True,
        )
        outcome.sessions.append(self._process.pid)

    def carry_out(self) -> None:
        """Returns when the coordinator is gone and all its events are acknowledged."""
        assert self._process.stdin is not None
        wish = agent.RunWish(order=self._order, intent=agent.RunWish.RUN)
        self._process.stdin.write(framing.pack(wish.SerializeToString()))
        self._process.stdin.flush()
        try:
            while self._process.poll() is None:
                self._take()
                self._wake()
                if time.monotonic() > self._deadline:
                    self._outcome.in_time = False
                    self._process.kill()
                time.sleep(POLL_S)
        finally:
            self._process.kill()
            returncode = self._process.wait(10)
            self._process.stdin.close()
        self._take()
        if self._store.ended(self._key) is None:
            said, cause = said_of(returncode, self._out_of_memory)
            reason = f"the run's coordinator (pid {self._process.pid}) {said}"
            key = agent.RunKey(job_id=self._key[0], run_number=self._key[1])
            append_lost(spool_path(self._outcome.files, *self._key), key, time.time_ns, reason, cause)
            self._take()
        self._outcome.events.append(self._store.events[self._key])

    def _take(self) -> None:
        """What agent and API server do with events: send, commit, acknowledge."""
        for event in self._outbox.unsent():
            self._outbox.acknowledge(self._store.commit(event))

    def _wake(self) -> None:
        """Continues processes that stopped themselves, once it is time."""
        now = time.monotonic()
        for fired, end in _fired(self._outcome.folder / "log", self._log_at):
            self._log_at = end
            if "=stop@" in fired.point:
                self._stopped[fired.pid] = now
        after_s = self._outcome.case.wakes_after_s
        for pid, since in list(self._stopped.items()):
            if after_s is not None and now - since >= after_s:
                del self._stopped[pid]
                if _session(pid) == self._process.pid:  # it may be gone, and its number another's
                    os.kill(pid, signal.SIGCONT)


def _fired(log: Path, offset: int) -> list[tuple[Fired, int]]:
    """The points that fired, by the log from `offset` on, each with the offset behind it."""
    with log.open("rb") as file:
        file.seek(offset)
        found = []
        for line in file:
            offset += len(line)
            at = line.find(b'{"event": "failpoint"')  # another process may have begun a line
            if at >= 0 and line.endswith(b"\n"):
                said = json.loads(line[at:])
                found.append((Fired(said["point"], said["pid"], said["step"]), offset))
        return found


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _fingerprint(events: list[agent.RunEvent]) -> str:
    return next((event.started.fingerprint for event in events if event.HasField("started")), "")
