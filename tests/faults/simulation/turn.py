"""One call to all workers: what each of them answers, and when, or that it is lost, given the faults that strike in it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from coordinator.exit_status import Cause
from lockstep.contract.errors import InternalError
from lockstep.internal.v1 import worker_pb2
from tests.faults.simulation.plan import DEATHS, Fault, Kind, Moment
from tests.faults.simulation.stage import Stage
from tests.faults.simulation.stretch import take_steps
from tests.faults.simulation.worker import SimulatedWorker
from worker.collective.peers import PeerError
from worker.limits import STEP_DEADLINE_FACTOR
from worker.weights_file import WeightsUnreadable

_ENDS = {
    Kind.KILL: (Cause.KILLED, "was killed from outside (SIGKILL)"),
    Kind.CRASH: (Cause.CRASHED, "crashed (SIGSEGV)"),
    Kind.STARVE: (Cause.OUT_OF_MEMORY, "was killed by the kernel because memory ran out (SIGKILL)"),
    Kind.VANISH: (Cause.NODE_GONE, "is out of the cluster, gone with its node"),
}
_ERRORS: dict[Kind, Exception] = {
    Kind.MEMORY: MemoryError("Unable to allocate 1.0 GiB"),
    Kind.EXCEPTION: IndexError("index 812 is out of bounds"),
    Kind.UNSOUND: WeightsUnreadable("the weights cannot be read"),
}


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """When it comes, and the answer; None: the worker is lost then."""

    at: float
    reply: bytes | None


@final
class Turn:
    """`outcomes` gives one for each rank; None for a worker that never answers."""

    def __init__(
        self,
        stage: Stage,
        workers: Sequence[SimulatedWorker],
        asked: Mapping[int, worker_pb2.WorkerRequest],
        dice: random.Random,
    ) -> None:
        self._stage, self._workers, self._asked, self._dice = stage, workers, asked, dice
        self._now = stage.clock.now
        request = next(iter(asked.values()))
        self.doing: str = request.WhichOneof("request") or ""
        if self.doing == "stretch":
            self.doing = f"stretch {request.stretch.first_step} to {request.stretch.last_step}"
            self._step_s = stage.arithmetic.job.step_s * dice.uniform(0.5, 2)
            self.takes_s = self._step_s * (request.stretch.last_step - request.stretch.first_step + 1)
        else:
            self.takes_s = dice.uniform(0.001, 0.2)
        self._faults = {rank: fault for fault in stage.faults.call() if (rank := fault.rank % len(workers)) in asked}
        stage.say("call", f"{stage.faults.calls}: {self.doing} of {len(asked)}")

    def outcomes(self) -> dict[int, Outcome | None]:
        """What comes of the call."""
        for rank, fault in list(self._faults.items()):
            if fault.kind == Kind.CUT:
                self._workers[rank].cut = True  # strikes when the state is to be moved
                del self._faults[rank]
            elif fault.kind == Kind.UNLINK and (len(self._workers) == 1 or not self.doing.startswith(("stretch", "connect"))):
                self._stage.faults.later(self._faults.pop(rank))
        return self._stretch() if self.doing.startswith("stretch") else self._one_by_one()

    def _one_by_one(self) -> dict[int, Outcome | None]:
        outcomes = {rank: self._single(rank, request) for rank, request in self._asked.items()}
        if self.doing == "connect":
            self._connect(outcomes)
        return outcomes

    def _single(self, rank: int, request: worker_pb2.WorkerRequest) -> Outcome | None:
        worker, fault, takes_s = self._workers[rank], self._faults.get(rank), self.takes_s * self._dice.uniform(0.5, 1)
        if worker.dead:
            return Outcome(self._now, None)
        if fault is None:
            return self._answer(takes_s, worker.handle(request))
        self._strike(rank, fault)
        if fault.kind in DEATHS:
            reply = worker.handle(request) if fault.moment == Moment.AFTER else None
            worker.dead = _ENDS[fault.kind]
            at = self._now + (0 if fault.moment == Moment.BEFORE else takes_s)
            return Outcome(at, reply.SerializeToString() if reply else None)
        if fault.kind == Kind.HANG:
            return None
        if fault.kind == Kind.SLEEP:
            return self._answer(takes_s + fault.seconds, worker.handle(request))
        if fault.kind == Kind.UNLINK:  # in connect
            return self._answer(1.0, worker.fail(self._missing((rank + 1) % len(self._workers), 0)))
        return self._answer(takes_s, worker.fail(_ERRORS[fault.kind]))

    def _connect(self, outcomes: dict[int, Outcome | None]) -> None:
        """Who connects to somebody that is gone, or whose peer gave up, says so."""
        gone = [rank for rank, worker in enumerate(self._workers) if worker.dead]
        gone += [rank for rank, fault in self._faults.items() if fault.kind in _ERRORS]
        gone += [rank for rank, fault in self._faults.items() if fault.kind == Kind.HANG and fault.part < 0.5]
        for rank, worker in enumerate(self._workers):
            if gone and rank not in gone and rank not in self._faults:
                outcomes[rank] = self._answer(self._dice.choice([0.01, 10.0]), worker.fail(self._missing(gone[0], 0)))
        for rank, fault in self._faults.items():
            if fault.kind == Kind.UNLINK and (peer := (rank + 1) % len(self._workers)) not in (*self._faults, *gone):
                outcomes[peer] = self._answer(1.0, self._workers[peer].fail(self._missing(rank, 0)))

    def _stretch(self) -> dict[int, Outcome | None]:
        """All take steps until somebody fails; then the others miss them, and say so."""
        request = self._asked[0].stretch
        self._stage.ledger.asked(request.first_step)
        for rank, worker in enumerate(self._workers):
            if worker.dead:
                return self._missed([rank], request.first_step, {rank: Outcome(self._now, None)}, self._now, self._slow())
            if worker.part is None or worker.part.step != request.first_step - 1:
                error = InternalError(f"a stretch from step {request.first_step} was asked; I am not there")
                failed = self._answer(0.001, worker.fail(error))
                return self._missed([rank], request.first_step, {rank: failed}, self._now, 0.001)
        steps = request.last_step - request.first_step + 1
        places = {rank: min(steps - 1, int(fault.part * steps)) for rank, fault in self._faults.items()}
        first = min(places.values(), default=steps)
        victims = [rank for rank, place in places.items() if place == first]
        if not victims:
            return self._whole(request)
        failing = request.first_step + first
        at = self._now + first * self._step_s
        if all(self._passes(self._faults[rank], failing == request.last_step) for rank in victims):
            return self._survived(request, victims)
        # What was done of the failing step is not known to all: some may have passed its last barrier.
        parts = [worker.member() for worker in self._workers]
        take_steps(self._stage.arithmetic, parts, request, failing - 1, None)
        outcomes: dict[int, Outcome | None] = {}
        slow = self._slow()
        for rank in victims:
            fault, worker = self._faults[rank], self._workers[rank]
            self._strike(rank, fault, f" at step {failing}")
            if fault.kind in DEATHS:
                worker.dead = _ENDS[fault.kind]
                outcomes[rank] = Outcome(at, None)
            elif fault.kind == Kind.HANG:
                outcomes[rank] = None
            elif fault.kind == Kind.SLEEP:
                late = worker.fail(self._missing(rank, failing - 1))
                outcomes[rank] = Outcome(at + max(slow, fault.seconds), late.SerializeToString())
            elif fault.kind == Kind.UNLINK:
                slow = 0.01
                peer = (rank + 1) % len(self._workers)
                outcomes[rank] = Outcome(at, worker.fail(self._missing(peer, failing - 1)).SerializeToString())
                if peer not in victims:
                    reply = self._workers[peer].fail(self._missing(rank, failing - 1))
                    outcomes[peer] = Outcome(at, reply.SerializeToString())
            else:
                slow = 0.01
                outcomes[rank] = Outcome(at, worker.fail(_ERRORS[fault.kind]).SerializeToString())
        return self._missed(victims, failing, outcomes, at, slow)

    def _passes(self, fault: Fault, last: bool) -> bool:
        """Whether the stretch is whole in spite of it."""
        if fault.kind == Kind.SLEEP:
            return fault.seconds < self._slow() or len(self._workers) == 1
        return fault.kind in DEATHS and fault.moment == Moment.AFTER and last

    def _survived(self, request: worker_pb2.StretchRequest, victims: Sequence[int]) -> dict[int, Outcome | None]:
        for rank in victims:
            fault = self._faults[rank]
            self._strike(rank, fault, " and the stretch is whole")
            if fault.kind == Kind.SLEEP:
                self._now += fault.seconds
        outcomes = self._whole(request)
        for rank in victims:
            if (fault := self._faults[rank]).kind != Kind.SLEEP:
                self._workers[rank].dead = _ENDS[fault.kind]
                if fault.part < 0.5:  # before it could answer; the others have, or do yet
                    outcomes[rank] = Outcome(self._now + fault.part * self.takes_s, None)
        return outcomes

    def _whole(self, request: worker_pb2.StretchRequest) -> dict[int, Outcome | None]:
        parts = [worker.member() for worker in self._workers]
        replies = take_steps(self._stage.arithmetic, parts, request, request.last_step, self._stage.watch)
        outcomes: dict[int, Outcome | None] = {}
        for rank, reply in enumerate(replies):
            reply.total_seconds, reply.median_step_seconds = self.takes_s, self._step_s
            parts[rank].stepped = True
            outcomes[rank] = self._answer(self.takes_s, worker_pb2.WorkerReply(stretch=reply))
        return outcomes

    def _missed(
        self, victims: Sequence[int], failing: int, outcomes: dict[int, Outcome | None], at: float, slow: float
    ) -> dict[int, Outcome | None]:
        """The answers of those that are left: peers are missing. A link to another node breaks at once; memory is silent."""
        for rank, worker in enumerate(self._workers):
            if rank in outcomes:
                continue
            if worker.dead:
                outcomes[rank] = Outcome(self._now, None)
                continue
            part = worker.member()
            if part.step >= 0 and self._dice.random() < 0.3:
                part.step = max(part.step, failing - self._dice.randint(0, 1))
            reply = worker.fail(self._missing(victims[0], failing))
            near = worker.node == self._workers[victims[0]].node
            outcomes[rank] = Outcome(at + (slow if near else min(slow, 0.01)), reply.SerializeToString())
        return outcomes

    def _slow(self) -> float:
        """How long a worker waits for a peer within a step."""
        part = next((worker.part for worker in self._workers if worker.part is not None), None)
        floor = 30.0 if part is not None and part.stepped else 300.0
        return max(floor, STEP_DEADLINE_FACTOR * self._step_s)

    def _missing(self, rank: int, step: int) -> PeerError:
        return PeerError(f"worker {rank} did not reach step {step}", [rank], step)

    def _answer(self, takes_s: float, reply: worker_pb2.WorkerReply) -> Outcome:
        return Outcome(self._now + takes_s, reply.SerializeToString())

    def _strike(self, rank: int, fault: Fault, where: str = "") -> None:
        worker = self._workers[rank]
        self._stage.faults.strike(fault, f"worker {rank}, pid {worker.pid}, in {self.doing}{where}", fault.seconds)
