"""Where a run stands: its step, what was last measured there, and the rows that its workers computed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from coordinator import limits
from coordinator.controller import Controller
from coordinator.evaluation import Evaluation
from coordinator.metric_messages import metrics_message
from coordinator.sharding import Rows
from coordinator.stretches import Stretch
from lockstep.contract.manifest import Manifest
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import worker_pb2
from lockstep.v1 import training_job_pb2 as job
from worker.specs import optimizer_record


@final
class Standing:
    """Changes with every stretch, evaluation and recovery. `start` is the step after which the run began.

    It is always that of the last snapshot: a stretch that is not completed leaves no trace here but its dropped rows.
    """

    def __init__(self, order: agent.RunOrder) -> None:
        self._total_steps = order.plan.total_steps
        self._furthest_step = order.furthest_step
        self._replays = order.kind == job.TrainingJob.VERIFY
        self.rows = Rows(order.plan.training_rows, order.spec.training.batch_size, order.plan.steps_per_epoch)
        self.start = self.step = 0
        self.loss: float | None = None
        self.evaluation: Evaluation | None = None  # the last one
        self.controller = Controller(optimizer_record(order.spec.optimizer).schedule)
        self._members: list[tuple[str, int]] = []
        self._computed: dict[tuple[str, int], int] = {}  # by node and process
        self._dropped_rows = 0
        self._stretches = 0  # that this group has taken
        self._timed = 0, 0.0  # steps of this group and their seconds, without its first stretch

    @property
    def epoch(self) -> int:
        """The epoch of the last step."""
        return self.rows.epoch_of(self.step)

    @property
    def computed_rows(self) -> list[int]:
        """By rank of the last group; then, if there are any, the rows of workers that are gone and of dropped steps."""
        rows = [self._computed.get(member, 0) for member in self._members]
        others = sum(self._computed.values()) - sum(rows) + self._dropped_rows
        return [*rows, others] if others else rows

    @property
    def finished(self) -> bool:
        """Whether all steps are applied."""
        return self.step == self._total_steps

    def resume(self, manifest: Manifest) -> None:
        """Stands where a checkpoint was taken."""
        self.start = self.step = manifest.step
        self.loss = manifest.loss
        self.controller = Controller.restored(self.controller.schedule, manifest)
        # A replay tells of what it computed itself.
        if manifest.validation_loss is not None and not self._replays:
            self.evaluation = Evaluation(
                manifest.validation_loss,
                manifest.validation_accuracy,
                manifest.validation_metrics,
                manifest.validation_classes,
            )

    def restart(self) -> None:
        """Stands before the first step again; the rows that workers computed stay counted."""
        self.start = self.step = 0
        self.loss = self.evaluation = None
        self.controller = Controller(self.controller.schedule)

    def formed(self, members: Sequence[job.WorkerInfo]) -> None:
        """A group of these workers goes on from here."""
        self._members = [(member.node, member.pid) for member in members]
        self._stretches, self._timed = 0, (0, 0.0)

    def stepped(self, replies: Sequence[worker_pb2.StretchReply]) -> None:
        """A stretch was taken; its answers are by rank."""
        self.step = replies[0].step
        self._stretches += 1
        self.controller = self.controller.skipped(replies[0].skipped_steps, replies[0].skipped_in_a_row)
        if replies[0].losses:
            self.loss = replies[0].losses[-1].loss
        for member, reply in zip(self._members, replies, strict=True):
            self._computed[member] = self._computed.get(member, 0) + reply.computed_rows

    def dropped(self, reached: int) -> None:
        """The steps up to `reached` were applied by a group that failed before its snapshot; they are taken again."""
        self._dropped_rows += self.rows.between(self.step, reached)

    def evaluated(self, evaluation: Evaluation) -> None:
        """The last step was evaluated."""
        self.evaluation = evaluation
        self.controller = self.controller.after(self.step, evaluation.loss)

    @property
    def evaluation_here(self) -> Evaluation | None:
        """The evaluation of this very step, for its manifest."""
        return self.evaluation if self.controller.seen_step == self.step else None

    def message(self, stretch: Stretch, seconds: float) -> job.Progress:
        """For people, once after each stretch; it took `seconds`, meetings included.

        The time that remains is left out until this group was timed for as long as a stretch normally takes: its first one
        warms all up and says nothing about the others, and short ones little.
        """
        step_s = seconds / stretch.steps
        progress = job.Progress(
            step=self.step,
            total_steps=self._total_steps,
            epoch=self.epoch,
            loss=self.loss,
            samples_per_second=self.rows.between(stretch.first - 1, self.step) / seconds if seconds > 0 else 0.0,
            step_seconds=step_s,
            workers=len(self._members),
            skipped_steps=self.controller.skipped_steps,
            applied_rows=self.rows.up_to(self.step),
            replayed_rows=self.rows.between(self.start, min(self.step, self._furthest_step)) + self._dropped_rows,
        )
        if self._stretches > 1:
            self._timed = self._timed[0] + stretch.steps, self._timed[1] + seconds
        steps, timed_s = self._timed
        if timed_s >= limits.STRETCH_S:
            progress.remaining_seconds = timed_s / steps * (self._total_steps - self.step)
        if self.evaluation is not None:
            progress.validation_loss = self.evaluation.loss
            if self.evaluation.accuracy is not None:
                progress.validation_accuracy = self.evaluation.accuracy
            progress.validation_metrics.CopyFrom(metrics_message(self.evaluation.metrics))
        return progress
