"""The loop of a training run: stretches, evaluations, checkpoints, from the newest checkpoint to the last step."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import final

from coordinator.commits import Commits
from coordinator.crew import Crew
from coordinator.evaluation import combine
from coordinator.group.group import GroupStartFailed, Interrupted, WorkerGroup, never
from coordinator.members import Members
from coordinator.model_files import ModelFiles
from coordinator.recovery import Corrupted, EndRun, GroupFailed, NotFinite, Patience, decide
from coordinator.reports import Reports, workers
from coordinator.standing import Standing
from coordinator.steps import Steps
from coordinator.stretches import Cadence, Stretch
from coordinator.wanted import Wanted
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import training_job_pb2 as job
from worker.failpoints import failpoint


@final
class Training:
    """One run of a training job. `run` returns how it ended; whatever it raises besides is a fault or a broken disk."""

    def __init__(
        self,
        order: agent.RunOrder,
        files_folder: Path,
        reports: Reports,
        wanted: Wanted,
        make_group: Callable[[], WorkerGroup],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._order, self._files_folder, self._reports, self._wanted = order, files_folder, reports, wanted
        self._make_group, self._clock = make_group, clock
        self._files = ModelFiles(order, files_folder)
        self._cadence = Cadence.of(order)
        self._commits = Commits(order, files_folder, reports, wanted, clock)
        self._at = Standing(order)
        self._fingerprint = order.fingerprint
        self._steps = Steps(order, self._files, reports, self._at, clock)
        self._unsaid: tuple[Stretch, float] | None = None  # the stretch before it and when it began, until progress is said
        self._patience = Patience()
        self._taken_at = clock()  # when the last stretch was
        self._begun = False

    def run(self) -> agent.RunEnded:
        """Trains to the last step, or as far as is wanted and possible."""
        self._recover()
        if self._at.finished and not self._evaluation_due:
            return self._ended(agent.RunEnded.SUCCEEDED, f"all {self._at.step} steps were applied by an earlier run")
        if self._wanted.cancelled():
            return self._cancelled()
        if self._wanted.paused():
            return self._ended(agent.RunEnded.PAUSED, f"paused at step {self._at.step}, before its workers started")
        with Crew(self._order, self._files_folder, self._reports, self._wanted, self._make_group(), self._clock) as crew:
            try:
                crew.start()
                while True:
                    try:
                        return self._train(crew)
                    except GroupFailed as failure:
                        end = self._mend(crew, failure)
                        if end is not None:
                            return self._decided(end)
            except (GroupStartFailed, NotFinite, Corrupted) as failure:
                return self._decided(decide(failure, self._order.spec.non_finite))
            except Interrupted:
                return self._cancelled()

    def _train(self, crew: Crew) -> agent.RunEnded:
        """Forms groups, one after the other as workers come and go, and has them step. Raises GroupFailed."""
        while (members := self._form(crew)) is not None:
            going = self._meet(members)
            while going and not crew.regroups():
                self._take(members)
                crew.stepped()
                going = self._meet(members)
            if self._at.finished:
                return self._ended(agent.RunEnded.SUCCEEDED, f"all {self._at.step} steps were applied")
            if not going:
                return self._ended(agent.RunEnded.PAUSED, f"paused at step {self._at.step}")
        if self._steps.snapshot is not None:
            self._commits.commit(self._steps.snapshot, self._at, self._fingerprint, put_off=False)
        return self._ended(agent.RunEnded.PAUSED, f"paused at step {self._at.step}, while it waited for workers")

    def _recover(self) -> None:
        start = self._commits.recover()
        if start is not None:
            self._at.resume(start.manifest)
            self._fingerprint = start.manifest.fingerprint
            self._steps.checkpoint = start.folder.relative_to(self._files_folder)

    def _form(self, crew: Crew) -> Members | None:
        """A group that stands where the run does. None when a pause was asked for while there were not enough workers."""
        before = crew.size
        members = crew.form(self._fingerprint, self._at.step)
        if members is None:
            return None
        if self._begun:
            failpoint("recovery.when_formed", self._at.step)
        self._steps.put(members)
        if self._begun:
            failpoint("recovery.when_restored", self._at.step)
        self._fingerprint = members.fingerprint
        self._at.formed(members.infos())
        if self._begun and crew.size != before:
            text = f"the run goes on after step {self._at.step} with {workers(crew.size)} instead of {before}"
            self._reports.notice(job.Notice.INFO, "WORKERS_CHANGED", text)
        self._reports.started(members.infos(), self._at.step, members.fingerprint, resizable=True)
        if not self._begun:
            self._begin()
        return members

    def _begin(self) -> None:
        """The time of checkpoints begins; says what is odd about the data."""
        self._begun = True
        self._commits.begin()
        if self._order.run_number == 1:
            for sentence in self._files.classes_on_one_side():
                self._reports.notice(job.Notice.WARNING, "CLASS_MISSING", sentence)

    def _mend(self, crew: Crew, failure: GroupFailed) -> EndRun | None:
        """Parts with the lost workers; what the others did since the snapshot is done again. Or says how the run ends."""
        vain_s = self._clock() - max(crew.formed_at, self._taken_at)
        decision, self._patience = self._patience.after(failure, self._order.spec.non_finite, vain_s)
        if isinstance(decision, EndRun):
            return decision
        before = crew.size
        reached, silent = crew.lose(decision.lost, failure.deadline_s, decision.hire_later)
        self._at.dropped(max(failure.reached, failure.within(reached)))
        left = f"{crew.size} of {workers(before)}"
        reason = "; ".join([decision.reason, *map(str, silent)])
        text = f"{reason}; the run goes on after step {self._at.step} with {left}"
        self._reports.recovering(decision.notice, text)
        return None

    def _take(self, members: Members) -> None:
        """Takes a stretch of steps. Raises NotFinite."""
        began = self._clock()
        stretch = self._steps.take(members, self._commits.apart_s)
        self._unsaid = stretch, began
        self._patience, self._taken_at = Patience(), self._clock()

    def _meet(self, members: Members) -> bool:
        """What is due where the run stands: an evaluation, a word about it, a checkpoint. Gives whether steps follow."""
        # Before the checkpoint, which so holds what the controller makes of it.
        evaluated = self._evaluate_if_due(members)
        if self._at.finished and self._steps.snapshot is None:
            # An earlier run took the last step, and was paused before it was evaluated.
            snapshot = self._steps.copied(members, self._at.step)
            self._commits.commit(snapshot, self._at, self._fingerprint, put_off=False)
            return False
        if self._unsaid is None or self._steps.snapshot is None:
            return evaluated
        pausing = (not evaluated or self._wanted.paused()) and not self._at.finished
        must_keep = pausing or self._at.finished
        stretch, began = self._unsaid
        self._reports.progress(self._at.message(stretch, self._clock() - began), self._at.computed_rows, last=must_keep)
        self._unsaid = None
        if must_keep or self._cadence.checkpoints(self._at.step, self._commits.apart_s):
            self._commits.commit(self._steps.snapshot, self._at, self._fingerprint, put_off=not must_keep)
        return not must_keep

    @property
    def _evaluation_due(self) -> bool:
        return self._cadence.evaluates(self._at.step) and self._at.controller.seen_step != self._at.step

    def _evaluate_if_due(self, members: Members) -> bool:
        """Evaluates the last step if that is due. False where a pause drops it: the next run begins with it."""
        if not self._evaluation_due:
            return True
        paused = never if self._at.finished else self._wanted.paused
        try:
            self._evaluate(members, lambda: self._wanted.cancelled() or paused())
        except Interrupted:
            if self._wanted.cancelled():
                raise
            return False
        return True

    def _evaluate(self, members: Members, interrupted: Callable[[], bool]) -> None:
        evaluation = combine(members.evaluate(interrupted), self._order.plan.validation_rows, self._files.positions)
        failpoint("evaluation.when_combined", self._at.step)
        self._at.evaluated(evaluation)
        if self._cadence.is_evaluation_point(self._at.step):
            self._reports.points(self._at.step, self._at.epoch, evaluation.points())

    def _cancelled(self) -> agent.RunEnded:
        return self._ended(agent.RunEnded.CANCELLED, f"cancelled after step {self._at.step}; {self._commits.kept}")

    def _decided(self, end: EndRun) -> agent.RunEnded:
        if end.notice:
            self._reports.notice(job.Notice.ERROR, end.notice, end.reason)
        reason = f"{end.reason}; {self._commits.kept}" if end.outcome == agent.RunEnded.FAILED else end.reason
        return self._ended(end.outcome, reason, end.cause)

    def _ended(
        self,
        outcome: agent.RunEnded.Outcome.ValueType,
        reason: str,
        cause: agent.RunEnded.Cause.ValueType = agent.RunEnded.CAUSE_UNSPECIFIED,
    ) -> agent.RunEnded:
        return agent.RunEnded(
            outcome=outcome,
            reason=reason,
            result=self._commits.result(),
            last_step=self._at.step,
            computed_rows=self._at.computed_rows,
            cause=cause,
        )
