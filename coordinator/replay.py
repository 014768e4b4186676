"""The run of a replay: steps of another job taken again, and their state compared with the checkpoints of that job."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import final

from coordinator import limits
from coordinator.checkpoint_folder import Damaged, record_of
from coordinator.checkpoints import Checkpoints
from coordinator.evaluation import combine
from coordinator.group.group import Interrupted, WorkerGroup
from coordinator.members import Members
from coordinator.model_files import ModelFiles
from coordinator.one_group import with_one_group
from coordinator.reports import Reports
from coordinator.sharding import workers_used
from coordinator.standing import Standing
from coordinator.steps import Steps
from coordinator.stretches import Cadence
from coordinator.wanted import Wanted
from lockstep.contract.digests import uses_controller
from lockstep.contract.manifest import OPTIMIZER_FILE
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import training_job_pb2 as job


@final
class Replay:
    """One run of a job of kind VERIFY. It reads the checkpoints of the replayed job and writes none; a new run begins again.

    Where the checkpoint that is asked about differs, the one from which the replay began may be what was altered: the replay
    then begins at an earlier one, and compares both, until one on the way is right or it began at the seed.
    """

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
        asked = order.plan.replay
        self._target = asked.step if asked.HasField("step") else None
        self._stops = set(asked.hashed_steps) | ({asked.step} if self._target is not None else set())
        self._last = max(self._stops)
        replayed = asked.job.removeprefix("jobs/")
        folder = files_folder / "checkpoints" / replayed
        self._checkpoints = Checkpoints(folder, replayed, order.arithmetic_digest, order.dataset_digest, 1, order.acknowledged)
        self._files = ModelFiles(order, files_folder)
        self._cadence = Cadence.of(order)
        self._evaluates = uses_controller(order.spec)
        self._start = asked.start_step
        self._at = Standing(order)
        self._steps: Steps  # from where it stands
        self._fingerprint = order.fingerprint
        self._found: job.ReplayResult | None = None

    def run(self) -> agent.RunEnded:
        """Replays and compares, as far as is wanted and possible."""
        if self._target is not None:
            try:
                self._checkpoints.read(self._target)
            except Damaged as damaged:
                reason = f"the checkpoint of step {self._target} is damaged: {damaged}"
                return agent.RunEnded(outcome=agent.RunEnded.FAILED, reason=reason)
        ended = with_one_group(
            self._make_group, self._replay, self._reports, self._order.spec.non_finite, lambda: f"step {self._at.step}"
        )
        ended.last_step = self._at.step
        ended.computed_rows.extend(self._at.computed_rows)
        if self._found is not None:
            ended.result.CopyFrom(job.Result(fingerprint=self._fingerprint, replay=self._found))
        return ended

    def _replay(self, group: WorkerGroup) -> agent.RunEnded:
        members = self._gather(group)
        while True:
            found = self._from_start(members)
            if found is None:
                reason = f"paused after step {self._at.step}; resumed, it begins again"
                return agent.RunEnded(outcome=agent.RunEnded.PAUSED, reason=reason)
            compared = [step for step in found.steps if step.checkpoint_weights_sha256]
            wrong = [step for step in compared if differs(step)]
            undecided = self._target in [step.step for step in wrong] and len(wrong) == len(compared)
            if not (undecided and self._start):
                break
            text = (
                f"replayed from step {self._start}, the checkpoint of step {self._target} differs; it is replayed from before "
                f"step {self._start} to see which of the two is altered"
            )
            self._reports.notice(job.Notice.WARNING, "CHECKPOINT_DIFFERS", text)
            self._stops.add(self._start)
            self._start = self._before(self._start)
            self._stand()
            self._steps.put(members)
        self._found = found
        if self._target is not None and wrong:
            return agent.RunEnded(outcome=agent.RunEnded.FAILED, reason=verdict(found))
        return agent.RunEnded(outcome=agent.RunEnded.SUCCEEDED, reason=verdict(found))

    def _gather(self, group: WorkerGroup) -> Members:
        """Workers of the replayed job's arithmetic, with the state of the step after which the replay begins."""
        group.start(workers_used(self._order.plan, self._wanted.workers()), limits.GROUP_START_S, self._wanted.cancelled)
        members = Members(group, self._order, self._files_folder, 1, self._wanted.cancelled)
        for refused in members.join(self._fingerprint, 1).refused:
            self._reports.notice(job.Notice.WARNING, "NODE_FINGERPRINT_DIFFERS", f"{refused}; it was refused")
        members.prepare()
        for sentence in members.short_of_memory():
            self._reports.notice(job.Notice.WARNING, "MEMORY_SHORT", sentence)
        self._fingerprint = members.fingerprint
        self._at.formed(members.infos())
        self._stand()
        self._steps.put(members)
        self._reports.started(members.infos(), self._start, members.fingerprint)
        return members

    def _stand(self) -> None:
        """Stands at the checkpoint of the start, or, where it is damaged, at an earlier one, or before the first step."""
        self._at.restart()
        self._steps = Steps(self._order, self._files, None, self._at, self._clock)
        while self._start:
            try:
                committed = self._checkpoints.read(self._start)
            except Damaged as damaged:
                self._begin_before(damaged, "CHECKPOINT_DAMAGED")
                continue
            try:
                self._checkpoints.check_acknowledged(committed.manifest, committed.folder)
            except Damaged as altered:
                self._stops.add(self._start)  # it is compared, too
                self._begin_before(altered, "CHECKPOINT_DIFFERS")
                continue
            self._at.resume(committed.manifest)
            self._steps.checkpoint = committed.folder.relative_to(self._files_folder)
            return

    def _begin_before(self, why: Damaged, notice: str) -> None:
        self._reports.notice(job.Notice.WARNING, notice, f"{why}; the replay begins at an earlier step")
        self._start = self._before(self._start)

    def _before(self, step: int) -> int:
        """The step of the last checkpoint before a step; 0 is the seed."""
        return max((there for there in self._checkpoints.steps() if there < step), default=0)

    def _from_start(self, members: Members) -> job.ReplayResult | None:
        """Takes the steps to the last stop and hashes at each; None when a pause came between."""
        found = job.ReplayResult(start_step=self._start)
        self._evaluate_if_due(members)
        if self._start in self._stops:
            found.steps.append(self._state(members))
        while self._at.step < self._last:
            if self._wanted.cancelled():
                raise Interrupted
            if self._wanted.paused():
                return None
            self._take(members)
            self._evaluate_if_due(members)
            if self._at.step in self._stops:
                found.steps.append(self._state(members))
        return found

    def _take(self, members: Members) -> None:
        """Takes a stretch of steps, to the next stop at most. Raises NotFinite."""
        began = self._clock()
        stop = min(stop for stop in self._stops if stop > self._at.step)
        stretch = self._steps.take(members, 0.0, stop)
        progress = self._at.message(stretch, self._clock() - began)
        progress.total_steps = self._last
        for field in ("applied_rows", "replayed_rows", "remaining_seconds"):
            progress.ClearField(field)  # of the training, all of them
        self._reports.progress(progress, self._at.computed_rows, last=self._at.step == self._last)

    def _evaluate_if_due(self, members: Members) -> None:
        """Evaluates the last step where something acts on it."""
        step = self._at.step
        if not (step and self._evaluates and self._cadence.evaluates(step)) or self._at.controller.seen_step == step:
            return
        replies = members.evaluate(self._wanted.cancelled)
        self._at.evaluated(combine(replies, self._order.plan.validation_rows, self._files.positions))

    def _state(self, members: Members) -> job.ReplayedStep:
        """The hashes of the state where the replay stands, and those of the checkpoint there."""
        step = self._at.step
        files, weights = self._files.tensors(self._steps.snapshot or self._steps.copied(members, step))
        optimizer = record_of(files[OPTIMIZER_FILE])["sha256"]
        there = job.ReplayedStep(step=step, weights_sha256=weights, optimizer_sha256=optimizer)
        if step in self._checkpoints.steps() and step > self._start:
            try:
                manifest = self._checkpoints.read(step).manifest
            except Damaged as damaged:
                self._reports.notice(job.Notice.WARNING, "CHECKPOINT_DAMAGED", f"{damaged}; it is not compared")
                return there
            there.checkpoint_weights_sha256 = manifest.weights_sha256
            there.checkpoint_optimizer_sha256 = manifest.files[OPTIMIZER_FILE]["sha256"]
        return there


def differs(step: job.ReplayedStep) -> bool:
    """Whether a checkpoint at the step holds another state than the replay gave."""
    held = step.checkpoint_weights_sha256, step.checkpoint_optimizer_sha256
    return bool(held[0]) and held != (step.weights_sha256, step.optimizer_sha256)


def verdict(found: job.ReplayResult) -> str:
    """What a replay found, in a sentence: checkpoints that are not what the job computes, with both hashes, or that all are."""
    begin = f"the checkpoint of step {found.start_step}" if found.start_step else "the seed"
    compared = [step for step in found.steps if step.checkpoint_weights_sha256]
    wrong = [step for step in compared if differs(step)]
    if wrong:
        right = [f"step {step.step}" for step in compared if not differs(step)]
        also = f"; that of {' and '.join(right)} is right" if right else ""
        return f"{'; '.join(_difference(step) for step in wrong)}; replayed from {begin}{also}"
    last = found.steps[-1].step
    steps = f"step {last:,}" if last == found.start_step + 1 else f"steps {found.start_step + 1:,} to {last:,}"
    took = f"{steps} replayed" if last > found.start_step else "the initial weights drawn"
    if not compared:
        return f"{took} from {begin}; {len(found.steps):,} of them hashed"
    at = " and ".join(f"step {step.step:,}" for step in compared)
    return f"{took}: the weights are those of the checkpoint of {at}, and so is the optimizer's state"


def _difference(step: job.ReplayedStep) -> str:
    said = f"the checkpoint of step {step.step} is not what the job computes: "
    if step.checkpoint_weights_sha256 != step.weights_sha256:
        return f"{said}its weights_sha256 is {step.checkpoint_weights_sha256}, the replay's {step.weights_sha256}"
    return f"{said}its optimizer state has SHA-256 {step.checkpoint_optimizer_sha256}, the replay's {step.optimizer_sha256}"
