"""What all parts of a simulation share: clock, faults, diary, the desk, the workers that live, and what is known of steps."""

from __future__ import annotations

from typing import final

from coordinator.exit_status import Cause
from tests.faults.simulation.arithmetic import Arithmetic
from tests.faults.simulation.clock import Clock
from tests.faults.simulation.desk import Desk
from tests.faults.simulation.diary import Diary
from tests.faults.simulation.faults import Faults
from tests.faults.simulation.ledger import Ledger
from tests.faults.simulation.stretch import Watch
from tests.faults.simulation.worker import SimulatedWorker


@final
class Stage:
    """Of one simulation."""

    def __init__(
        self, arithmetic: Arithmetic, clock: Clock, faults: Faults, diary: Diary, desk: Desk, ledger: Ledger, watch: Watch
    ) -> None:
        self.arithmetic, self.clock, self.faults, self.diary = arithmetic, clock, faults, diary
        self.desk, self.ledger, self.watch = desk, ledger, watch
        self._workers: dict[int, SimulatedWorker] = {}
        self._pid = 100

    def say(self, who: str, text: str) -> None:
        """A line of the diary."""
        self.diary.say(who, text)

    def new_worker(self, node: str, fingerprint: str) -> SimulatedWorker:
        """Starts a process."""
        self._pid += 1
        worker = SimulatedWorker(self.arithmetic, self._pid, node, fingerprint, self.find)
        self._workers[self._pid] = worker
        return worker

    def find(self, pid: int) -> SimulatedWorker | None:
        """The worker of a process id, while it lives."""
        worker = self._workers.get(pid)
        return None if worker is None or worker.dead else worker

    def end_worker(self, worker: SimulatedWorker) -> None:
        """Ends a process."""
        worker.dead = worker.dead or (Cause.KILLED, "was ended")
        self._workers.pop(worker.pid, None)
