"""The controller: what a run remembers of evaluations and skipped steps, and what follows for the next steps. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, final

from lockstep.contract.manifest import Manifest
from worker.specs import PlateauSchedule, ScheduleRecord


@final
@dataclass(frozen=True, slots=True)
class Controller:
    """A function of the schedule and of the validation losses at the steps that the spec fixes; of no time, worker or pause.

    `seen_step` is the last evaluated step, 0 before the first; `best` the lowest validation loss and its step, the first of
    equals, never NaN. `without_improvement` counts the evaluations since, or since the factor fell last; `rate_factor`
    multiplies the learning rates of the steps behind `seen_step`, in float64. Only reduce-on-plateau moves these two.

    `skipped_steps` were not applied because their gradients were not finite; `skipped_in_a_row` of them came last.
    """

    schedule: ScheduleRecord
    seen_step: int = 0
    best: tuple[float, int] | None = None
    without_improvement: int = 0
    rate_factor: float = 1.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0

    def skipped(self, steps: int, in_a_row: int) -> Controller:
        """The controller behind steps of which so many were skipped, `in_a_row` of them, and of those before, at their end."""
        return replace(self, skipped_steps=self.skipped_steps + steps, skipped_in_a_row=in_a_row)

    def after(self, step: int, validation_loss: float) -> Controller:
        """The controller once `step` was evaluated."""
        seen = replace(self, seen_step=step)
        if not math.isnan(validation_loss) and (self.best is None or validation_loss < self.best[0]):
            return replace(seen, best=(validation_loss, step), without_improvement=0)
        plateau = self.schedule
        if not isinstance(plateau, PlateauSchedule) or step <= plateau.warmup_steps:
            return seen
        if self.without_improvement + 1 < plateau.patience:
            return replace(seen, without_improvement=self.without_improvement + 1)
        return replace(seen, without_improvement=0, rate_factor=self.rate_factor * plateau.factor)

    def recorded(self) -> dict[str, Any]:
        """The fields of a manifest that `restored` reads; JSON keeps every bit of them."""
        return {
            "best_validation_loss": self.best[0] if self.best else None,
            "best_step": self.best[1] if self.best else None,
            "controller": {
                "seen_step": self.seen_step,
                "without_improvement": self.without_improvement,
                "rate_factor": self.rate_factor,
                "skipped_steps": self.skipped_steps,
                "skipped_in_a_row": self.skipped_in_a_row,
            },
        }

    @classmethod
    def restored(cls, schedule: ScheduleRecord, manifest: Manifest) -> Controller:
        """The controller as it stood at a checkpoint. Manifests from before there was one say what was seen."""
        best = None
        if manifest.best_validation_loss is not None and manifest.best_step is not None:
            best = (manifest.best_validation_loss, manifest.best_step)
        kept = manifest.controller
        if not kept:
            return cls(schedule, manifest.step if manifest.validation_loss is not None else 0, best)
        skipped = kept.get("skipped_steps", 0), kept.get("skipped_in_a_row", 0)
        return cls(schedule, kept["seen_step"], best, kept["without_improvement"], kept["rate_factor"], *skipped)
