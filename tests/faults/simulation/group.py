"""A group of simulated workers: the contract of coordinator.group.group in one process, with the clock and the faults of a
simulation."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from coordinator import limits
from coordinator.exit_status import Cause
from coordinator.group.group import AnswersDue, GroupStartFailed, Interrupted, Replies, WorkerGroup, WorkerLoss, never, no_alarm
from lockstep.internal.v1 import worker_pb2
from tests.faults.simulation.plan import Kind
from tests.faults.simulation.stage import Stage
from tests.faults.simulation.turn import Outcome, Turn
from tests.faults.simulation.worker import SimulatedWorker

NODES = ("a", "b")
# The arithmetic of the nodes; the second is that of a stranger, unless it is what the job began with.
FINGERPRINTS = ("haswell", "skylakex")


@final
@dataclass(slots=True)
class Hired:
    """A replacement on its way."""

    worker: SimulatedWorker
    arrives: float
    stillborn: bool


@final
class SimulatedGroup(WorkerGroup):
    """The workers of one run."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._clock, self._faults = stage, stage.clock, stage.faults
        self._workers: list[SimulatedWorker] = []
        self._hired: list[Hired] = []
        self._failed: list[WorkerLoss] = []
        self._again_at = 0.0
        self._owed: dict[SimulatedWorker, Outcome | None] = {}
        # What a run draws does not depend on how much the runs before it drew.
        self._dice = random.Random(stage.arithmetic.job.seed * 1000 + stage.faults.calls)

    @property
    def size(self) -> int:
        return len(self._workers)

    @property
    def here(self) -> str:
        return NODES[0]

    def start(self, workers: int, deadline_s: float, interrupted: Callable[[], bool] = never) -> None:
        self._faults.act("start")
        for fault in self._faults.place():
            self._faults.strike(fault, f"{workers} are not placed")
            self._clock.to(self._clock.now + min(deadline_s, fault.seconds))
            raise GroupStartFailed("there was no place for the workers", outside=True)
        self._clock.to(self._clock.now + self._dice.uniform(0.1, 1.0))
        if interrupted():
            raise Interrupted
        self._workers = [self._new() for _ in range(workers)]
        self._stage.say("group", f"{workers} start")

    def _new(self, stranger: bool = False) -> SimulatedWorker:
        usual = self._stage.desk.fingerprint or FINGERPRINTS[0]
        fingerprint = next(other for other in FINGERPRINTS if other != usual) if stranger else usual
        return self._stage.new_worker(self._dice.choice(NODES), fingerprint)

    def call(
        self,
        requests: Mapping[int, bytes],
        deadline_s: float,
        interrupted: Callable[[], bool] = never,
        alarm: Callable[[bytes], float] = no_alarm,
    ) -> Replies:
        assert not self._owed, "settle comes before the next call"
        self._faults.act("call")
        asked = {rank: worker_pb2.WorkerRequest.FromString(request) for rank, request in requests.items()}
        turn = Turn(self._stage, self._workers, asked, self._dice)
        outcomes = turn.outcomes()
        for wish in self._faults.people():
            self._stage.desk.wish(wish, self._clock.now + wish.part * turn.takes_s)
        self._owed = {self._workers[rank]: outcomes[rank] for rank in asked}
        replies, losses, alarmed = self._collect(self._clock.now + deadline_s, interrupted, alarm, grace=True)
        if not losses and not alarmed:
            late = [rank for rank, worker in enumerate(self._workers) if worker in self._owed]
            losses.update({rank: self._late(rank, deadline_s) for rank in late})
        self._told(turn.doing, replies, losses)
        return Replies(replies, tuple(losses[rank] for rank in sorted(losses)))

    def settle(self, deadline_s: float, interrupted: Callable[[], bool] = never) -> Replies:
        self._faults.act("settle")
        replies, losses, _ = self._collect(self._clock.now + deadline_s, interrupted, no_alarm, grace=False)
        for rank, worker in enumerate(self._workers):
            if worker in self._owed:
                losses[rank] = self._late(rank, deadline_s)
        self._owed.clear()
        self._told("settling", replies, losses)
        return Replies(replies, tuple(losses[rank] for rank in sorted(losses)))

    def _collect(
        self, deadline: float, interrupted: Callable[[], bool], alarm: Callable[[bytes], float], grace: bool
    ) -> tuple[dict[int, bytes], dict[int, WorkerLoss], bool]:
        """What comes until all is there, the deadline, or a loss and the grace."""
        replies: dict[int, bytes] = {}
        losses: dict[int, WorkerLoss] = {}
        due = AnswersDue(deadline)
        while self._owed:
            if interrupted():
                raise Interrupted
            coming = [(outcome.at, worker) for worker, outcome in self._owed.items() if outcome is not None]
            at = min((at for at, _ in coming), default=float("inf"))
            self._clock.to(min(at, due.end, self._stage.desk.next_wish()))
            if self._clock.now >= at:
                for when, worker in coming:
                    if when > at:
                        continue
                    rank, outcome = self._workers.index(worker), self._owed.pop(worker)
                    assert outcome is not None
                    if outcome.reply is None:
                        losses[rank] = self._loss(rank)
                        if grace:
                            due.lost(self._clock.now)
                    else:
                        replies[rank] = outcome.reply
                        due.heard(self._clock.now, alarm(outcome.reply))
            elif self._clock.now >= due.end:
                break
        return replies, losses, due.alarmed

    def _loss(self, rank: int) -> WorkerLoss:
        worker = self._workers[rank]
        assert worker.dead is not None
        return WorkerLoss(rank, worker.node, worker.pid, *worker.dead)

    def _late(self, rank: int, deadline_s: float) -> WorkerLoss:
        worker = self._workers[rank]
        return WorkerLoss(rank, worker.node, worker.pid, Cause.LATE, f"did not answer within {deadline_s:.0f} s")

    def _told(self, doing: str, replies: Mapping[int, bytes], losses: Mapping[int, WorkerLoss]) -> None:
        failures = {}
        for rank, reply in replies.items():
            answer = worker_pb2.WorkerReply.FromString(reply)
            if answer.HasField("failure"):
                failures[rank] = answer.failure
            elif answer.HasField("stretch"):
                self._stage.ledger.taken(answer.stretch.step)
        if losses or failures:
            texts = [str(loss) for loss in losses.values()] + [failure.text for failure in failures.values()]
            self._stage.say("group", f"{doing}: {'; '.join(texts)}")
            self._stage.ledger.failed(list(losses.values()), list(failures.values()), doing == "settling")

    def keep(self, ranks: Sequence[int]) -> None:
        self._faults.act("keep")
        kept = [self._workers[rank] for rank in ranks]
        for worker in self._workers:
            if worker not in kept:
                self._stage.end_worker(worker)
                self._owed.pop(worker, None)
        self._workers = kept

    def hire(self, workers: int) -> None:
        self._faults.act("hire")
        while len(self._hired) > workers:
            self._stage.end_worker(self._hired.pop().worker)
        while len(self._hired) < workers and self._clock.now >= self._again_at:
            arrives, stillborn, stranger = self._clock.now + self._dice.choice([0.05, 1.0, 10.0]), False, False
            for fault in self._faults.hires():
                self._faults.strike(fault, "of one that is hired now", fault.seconds + 200)
                if fault.kind == Kind.LATE_HIRES:
                    arrives += fault.seconds + 200
                elif fault.kind == Kind.STILLBORN:
                    stillborn = True
                else:
                    stranger = True
            self._hired.append(Hired(self._new(stranger), arrives, stillborn))

    def arrived(self) -> int:
        for hired in list(self._hired):
            if hired.stillborn and hired.arrives <= self._clock.now:
                self._hired.remove(hired)
                self._stage.end_worker(hired.worker)
                text = "ended by itself with exit code 1"
                self._failed.append(WorkerLoss(self.size, hired.worker.node, hired.worker.pid, Cause.EXITED, text))
                self._again_at = self._clock.now + limits.HIRE_AGAIN_S
        return sum(hired.arrives <= self._clock.now for hired in self._hired)

    def failed(self) -> Sequence[WorkerLoss]:
        failed, self._failed = self._failed, []
        self._stage.ledger.stillborn(failed)
        return failed

    def welcome(self) -> None:
        self._faults.act("welcome")
        there = [hired for hired in self._hired if hired.arrives <= self._clock.now and not hired.stillborn]
        self._workers += [hired.worker for hired in there]
        self._hired = [hired for hired in self._hired if hired not in there]
        self._stage.say("group", f"{len(there)} join")

    def beat(self) -> None:
        raise AssertionError("no thread beats here")

    def close(self) -> None:
        for worker in [*self._workers, *(hired.worker for hired in self._hired)]:
            self._stage.end_worker(worker)
        self._workers, self._hired = [], []
        self._owed.clear()
