"""Where stretches end: at evaluations, at checkpoints, at points of time measured in steps. Pure; the clock is passed in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from coordinator import limits
from lockstep.contract.arithmetic import point_interval
from lockstep.internal.v1 import agent_service_pb2 as agent


@final
@dataclass(frozen=True, slots=True)
class Cadence:
    """What falls on which step. Evaluations are fixed by the spec; checkpoints too, or lie at epochs' ends some time apart."""

    total_steps: int
    steps_per_epoch: int
    evaluate_every: int  # 0: never
    checkpoint_every: int  # 0: at epochs' ends, CHECKPOINT_APART_S apart
    point_every: int

    @classmethod
    def of(cls, order: agent.RunOrder) -> Cadence:
        """The cadence that the spec asks for."""
        plan, spec = order.plan, order.spec
        evaluate_every = spec.evaluation.every_steps or plan.steps_per_epoch
        return cls(
            total_steps=plan.total_steps,
            steps_per_epoch=plan.steps_per_epoch,
            evaluate_every=evaluate_every if plan.validation_rows else 0,
            checkpoint_every=spec.checkpoints.every_steps,
            point_every=point_interval(plan.total_steps),
        )

    def evaluates(self, step: int) -> bool:
        """Whether the validation rows are evaluated after this step."""
        return bool(self.evaluate_every) and (step % self.evaluate_every == 0 or step == self.total_steps)

    def next_evaluation(self, step: int) -> int:
        """The next step after `step` whose validation rows are evaluated, in a job that evaluates."""
        return min(_next_multiple(step, self.evaluate_every), self.total_steps)

    def checkpoints(self, step: int, apart_s: float) -> bool:
        """Whether a checkpoint is written after this step, `apart_s` after the last one."""
        if step == self.total_steps:
            return True
        if self.checkpoint_every:
            return step % self.checkpoint_every == 0
        return step % self.steps_per_epoch == 0 and apart_s >= limits.CHECKPOINT_APART_S

    def is_point(self, step: int) -> bool:
        """Whether the step's loss is a point of the curve."""
        return step % self.point_every == 0 or step == self.total_steps

    def is_evaluation_point(self, step: int) -> bool:
        """Whether the evaluation after this step is a point of the curves."""
        evaluations = -(-self.total_steps // self.evaluate_every)
        return step // self.evaluate_every % point_interval(evaluations) == 0 or step == self.total_steps

    def next_meeting(self, step: int, apart_s: float, step_s: float) -> int:
        """The next step after `step` that must end a stretch, when steps take `step_s`."""
        meetings = [self.total_steps]
        if self.evaluate_every:
            meetings.append(self.next_evaluation(step))
        if self.checkpoint_every:
            meetings.append(_next_multiple(step, self.checkpoint_every))
        else:
            wait_s = max(0.0, limits.CHECKPOINT_APART_S - apart_s)
            due = step + int(wait_s / step_s) if step_s > 0 else step
            meetings.append(_next_multiple(due, self.steps_per_epoch))
        return min(meetings)


@final
@dataclass(frozen=True, slots=True)
class Pace:
    """What was measured of the stretches so far."""

    step_s: float = 0.0
    copy_s: float = 0.0
    last_steps: int = 0

    def after(self, steps: int, step_s: float, copy_s: float) -> Pace:
        """The pace once a stretch of `steps` was taken and its state copied."""
        return replace(self, step_s=step_s, copy_s=copy_s, last_steps=max(steps, self.last_steps))

    def steps(self) -> int:
        """How many steps a stretch may have: one at first, then what fits the time, growing step by step."""
        if self.step_s <= 0:
            return 1
        fitting = max(limits.STRETCH_S, limits.STRETCH_COPIES * self.copy_s) / self.step_s
        return max(1, int(min(fitting, self.last_steps * limits.STRETCH_GROWTH, limits.STRETCH_STEPS)))


@final
@dataclass(frozen=True, slots=True)
class Stretch:
    """The steps `first` to `last`, both included."""

    first: int
    last: int

    @property
    def steps(self) -> int:
        """How many."""
        return self.last - self.first + 1


def next_stretch(cadence: Cadence, step: int, pace: Pace, apart_s: float) -> Stretch:
    """The stretch after `step`: to the next meeting, or as many steps as the pace allows."""
    return Stretch(step + 1, min(step + pace.steps(), cadence.next_meeting(step, apart_s, pace.step_s)))


def _next_multiple(step: int, every: int) -> int:
    return (step // every + 1) * every
