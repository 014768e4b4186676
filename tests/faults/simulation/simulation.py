"""One simulation: a job through all its runs to its end, by the coordinator's own loop, with what goes wrong on the way."""

from __future__ import annotations

import errno
import shutil
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np

from coordinator import limits
from coordinator.checkpoint_folder import CheckpointBroken
from coordinator.reports import Reports
from coordinator.sharding import Rows
from coordinator.spool import SpoolFull
from coordinator.training import Training
from lockstep.internal.v1 import agent_service_pb2 as agent
from services.jobs.transitions import State
from tests.faults.simulation.arithmetic import Arithmetic
from tests.faults.simulation.clock import Clock, Stuck
from tests.faults.simulation.damage import damage
from tests.faults.simulation.desk import Desk
from tests.faults.simulation.diary import Diary
from tests.faults.simulation.disk import Disk
from tests.faults.simulation.faults import CoordinatorDied, Faults
from tests.faults.simulation.group import SimulatedGroup
from tests.faults.simulation.job import JOB_ID, Job
from tests.faults.simulation.ledger import Ledger
from tests.faults.simulation.oracle import Oracle
from tests.faults.simulation.plan import Fault, Kind, described, drawn
from tests.faults.simulation.reference import Reference
from tests.faults.simulation.spool import SimulatedSpool
from tests.faults.simulation.stage import Stage
from tests.faults.simulation.stretch import Watch
from tests.faults.simulation.world import simulated

# Where files are made and removed fastest.
_MEMORY = Path("/dev/shm")


@final
@dataclass(frozen=True)
class Found:
    """What came of a simulation: the job's last state, its runs, what is wrong, what was planned and what struck; the diary."""

    state: State
    runs: int
    seconds: float
    wrong: list[str]
    faults: Faults
    planned: Sequence[Fault]
    lines: list[str]


@final
class Simulation:
    """Of one job and one plan, in an empty folder."""

    def __init__(
        self, job: Job, planned: Sequence[Fault], reference: Reference, folder: Path, watch: Watch | None, kept: bool = False
    ) -> None:
        self._job, self._folder = job, folder
        job.write_dataset(folder)
        (folder / "checkpoints" / JOB_ID).mkdir(parents=True)
        self.clock = Clock()
        self.diary = Diary(self.clock, kept)
        self.faults = Faults(planned, self.clock, self.diary)
        self.desk = Desk(job, self.clock, self.faults, self.diary)
        self.oracle = Oracle(job, reference, folder, self.diary)
        plan = job.order.plan
        self._rows = Rows(plan.training_rows, job.batch_size, plan.steps_per_epoch)
        arithmetic = Arithmetic(job)
        self._stage = Stage(
            arithmetic, self.clock, self.faults, self.diary, self.desk, Ledger(self._rows), watch or self.oracle.watch
        )
        self._disk = Disk(self.faults, self.clock)
        self._left_clean = True

    def run(self) -> None:
        """To the job's end, or to where it is stuck or the code fails."""
        try:
            while (order := self.desk.grant()) is not None:
                self._run(order)
                if self.desk.over:
                    break
        except Stuck as stuck:
            self.oracle.says("O5", str(stuck))
        except Exception:  # whatever the code raises that it must not
            self.oracle.says("code", traceback.format_exc())
        else:
            if self.desk.state == State.FAILED and not self._may_fail():
                self.oracle.says("O5", "the job failed, for no cause of its own")
            self.oracle.job_ended(self.desk.state == State.SUCCEEDED, self._left_clean)

    def _may_fail(self) -> bool:
        own = (Kind.CRASH, Kind.STARVE, Kind.HANG, Kind.SLEEP, Kind.MEMORY, Kind.EXCEPTION, Kind.UNSOUND, Kind.STILLBORN)
        return sum(self.faults.struck[kind] for kind in own) >= limits.SAME_CAUSE_GROUPS

    def _run(self, order: agent.RunOrder) -> None:
        for fault in self.faults.damages():
            if what := damage(self._folder / "checkpoints" / JOB_ID, fault):
                self.faults.strike(fault, what)
            else:
                self.faults.later(fault)
        self.oracle.begins(order)
        self._stage.ledger = ledger = Ledger(self._rows)
        self.faults.dead = False
        self.diary.say("run", f"{order.run_number} begins with {order.workers} workers")
        spool = SimulatedSpool(self._stage, self._disk, order, self._hear)
        cut_off = self._left_clean = False
        try:
            with simulated(self._stage, self._disk):
                reports = Reports(spool, self.clock)
                make_group = lambda: SimulatedGroup(self._stage)  # noqa: E731
                ended = Training(order, self._folder, reports, self.desk, make_group, self.clock).run()
                reports.ended(ended)
            self._left_clean = True
        except CoordinatorDied:
            cut_off, ended = True, _lost("the coordinator was killed", agent.RunEnded.OUTSIDE)
        except CheckpointBroken as broken:
            cut_off, ended = True, _lost(str(broken), agent.RunEnded.OWN)
        except SpoolFull as full:
            cut_off, ended = True, _lost(str(full), agent.RunEnded.OWN)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENOSPC):
                raise
            cut_off, ended = True, _lost(f"the coordinator failed: {error}", agent.RunEnded.OWN)
        if not spool.ended:  # the agent's word
            self.diary.say("agent", f"the run is lost: {ended.reason}")
            self.desk.hear(agent.RunEvent(ended=ended))
        self.oracle.run_ended(order, ended, ledger, cut_off or ended.outcome == agent.RunEnded.CANCELLED)

    def _hear(self, event: agent.RunEvent) -> None:
        self.oracle.hear(event)
        self.desk.hear(event)


def _lost(reason: str, cause: agent.RunEnded.Cause.ValueType) -> agent.RunEnded:
    return agent.RunEnded(outcome=agent.RunEnded.LOST, reason=reason, cause=cause)


class Bench:
    """A folder for simulations, one after the other; the reference of the last job is kept."""

    def __init__(self) -> None:
        parent = _MEMORY if _MEMORY.is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="simulated-run-", dir=parent))
        self._known: tuple[Job, Reference] | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def seed(self, seed: int, kept: bool = False) -> Found:
        """The simulation of a seed; its diary is kept if asked."""
        job = Job.drawn(seed)
        reference = self.reference(job)
        return self.simulate(job, drawn(seed, reference.calls, reference.acts), kept)

    def reference(self, job: Job) -> Reference:
        """What the job gives where nothing goes wrong."""
        if self._known is None or self._known[0] != job:
            reference, arithmetic = Reference(), Arithmetic(job)
            reference.learn(0, arithmetic.initial(), np.zeros(arithmetic.size, np.float32))
            # Neither the workers nor the cadence of checkpoints is part of what is computed.
            undisturbed = replace(job, workers=1, minimum=1, checkpoint_every=job.total_steps)
            alone = Simulation(undisturbed, (), reference, self._empty(), watch=reference.learn)
            alone.run()
            assert not alone.oracle.wrong, "\n".join(alone.oracle.wrong)
            reference.curves, reference.manifest = alone.oracle.curves, alone.oracle.manifest()
            reference.calls, reference.acts = alone.faults.calls, alone.faults.acts
            self._known = job, reference
        return self._known[1]

    def simulate(self, job: Job, planned: Sequence[Fault], kept: bool = False) -> Found:
        """Runs the job with what goes wrong."""
        simulation = Simulation(job, planned, self.reference(job), self._empty(), None, kept)
        simulation.diary.say("plan", f"{job}")
        simulation.diary.say("plan", described(planned))
        simulation.run()
        wrong, desk, faults = simulation.oracle.wrong, simulation.desk, simulation.faults
        return Found(desk.state, desk.run_number, simulation.clock.now, wrong, faults, planned, simulation.diary.lines)

    def _empty(self) -> Path:
        with suppress(FileNotFoundError):
            shutil.rmtree(self._folder)
        self._folder.mkdir()
        return self._folder
