"""The run of a gradient check: one worker compares tensor after tensor, and the table of them decides how the run ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import final

from coordinator import limits
from coordinator.group.group import Interrupted, WorkerGroup
from coordinator.members import Members
from coordinator.one_group import with_one_group
from coordinator.reports import Reports
from coordinator.wanted import Wanted
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import training_job_pb2 as job
from worker.nn.gradient_check import FLOAT32_TOLERANCE, TOLERANCE


@final
class GradientCheckRun:
    """One run of a job of kind GRADIENT_CHECK. It writes no checkpoint: a run after a lost one checks all tensors again."""

    def __init__(
        self,
        order: agent.RunOrder,
        files_folder: Path,
        reports: Reports,
        wanted: Wanted,
        make_group: Callable[[], WorkerGroup],
    ) -> None:
        self._order, self._files_folder, self._reports, self._wanted = order, files_folder, reports, wanted
        self._make_group = make_group
        self._tensors = order.plan.total_steps
        self._found = job.GradientCheckResult(tolerance=TOLERANCE, float32_tolerance=FLOAT32_TOLERANCE)
        self._fingerprint = ""

    def run(self) -> agent.RunEnded:
        """Checks all tensors, or as many as is wanted and possible."""
        ended = with_one_group(self._make_group, self._check, self._reports, self._order.spec.non_finite, lambda: self._so_far)
        ended.last_step = len(self._found.tensors)
        if len(self._found.tensors) == self._tensors:  # only a whole table is a result
            ended.result.CopyFrom(job.Result(fingerprint=self._fingerprint, gradient_check=self._found))
        return ended

    def _check(self, group: WorkerGroup) -> agent.RunEnded:
        members = self._gather(group)
        for number in range(self._tensors):
            if self._wanted.cancelled():
                raise Interrupted
            if self._wanted.paused():
                reason = f"paused after {self._so_far}; resumed, it begins again"
                return agent.RunEnded(outcome=agent.RunEnded.PAUSED, reason=reason)
            reply = members.check_gradient(number)
            self._found.rows = reply.rows
            self._found.tensors.add().CopyFrom(reply.tensor)
            progress = job.Progress(step=number + 1, total_steps=self._tensors, workers=1)
            self._reports.progress(progress, [], last=number + 1 == self._tensors)
        self._found.worst_relative_error = worst_error(self._found)
        wrong = verdict(self._found)
        if wrong:
            return agent.RunEnded(outcome=agent.RunEnded.FAILED, reason=wrong)
        reason = f"the gradients of all {self._tensors} tensors are right"
        return agent.RunEnded(outcome=agent.RunEnded.SUCCEEDED, reason=reason)

    def _gather(self, group: WorkerGroup) -> Members:
        """One worker with the initial weights; any arithmetic will do."""
        group.start(1, limits.GROUP_START_S, self._wanted.cancelled)
        members = Members(group, self._order, self._files_folder, 1, self._wanted.cancelled)
        members.join("", 1)
        members.prepare()
        members.restore(0, "")
        for sentence in members.short_of_memory():
            self._reports.notice(job.Notice.WARNING, "MEMORY_SHORT", sentence)
        self._fingerprint = members.fingerprint
        self._reports.started(members.infos(), 0, members.fingerprint)
        return members

    @property
    def _so_far(self) -> str:
        return f"{len(self._found.tensors)} of {self._tensors} tensors"


def worst_error(found: job.GradientCheckResult) -> float:
    """The worst relative error of all tensors; a NaN is the worst of all."""
    errors = [tensor.worst_relative_error for tensor in found.tensors]
    return math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)


def verdict(found: job.GradientCheckResult) -> str:
    """What is wrong, in a sentence that names tensor, index and values; empty if nothing is."""
    wrong = [tensor for tensor in found.tensors if not tensor.worst_relative_error < found.tolerance]
    if wrong:
        first = max(wrong, key=lambda tensor: (math.isnan(tensor.worst_relative_error), tensor.worst_relative_error))
        at = ", ".join(map(str, first.worst_index))
        others = f"; {len(wrong) - 1} more of {len(found.tensors)} tensors are wrong" if len(wrong) > 1 else ""
        if not (math.isfinite(first.backward) and math.isfinite(first.numerical)):
            return (
                f"the gradient of {first.name} at [{at}] is not finite at the initial weights (backward {first.backward:g}, "
                f"numerical {first.numerical:g}): scale the inputs (preprocessing.standardize), or look at these rows{others}"
            )
        return (
            f"the gradient of {first.name} at [{at}] is wrong: backward gives {first.backward:.10g}, central differences "
            f"{first.numerical:.10g}, a relative error of {first.worst_relative_error:.3g}; it must be below "
            f"{found.tolerance:g}. The fault is the engine's: please report it with the job file{others}"
        )
    for tensor in found.tensors:
        if not tensor.float32_deviation < found.float32_tolerance:
            return (
                f"the float32 gradients of the layer of {tensor.name} deviate from those in float64 by "
                f"{tensor.float32_deviation:.3g} of their size; it must be below {found.float32_tolerance:g}: scale the inputs "
                "(preprocessing.standardize), or look for a layer whose outputs grow very large"
            )
    return ""
