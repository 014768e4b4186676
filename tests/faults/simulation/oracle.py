"""What must hold of every simulation, whatever went wrong in it; each violation is a sentence that begins with its oracle.

O1: every checkpoint is the reference's, to the bit. O3: states, runs, events and curves are a legal path. O5: the job ends.
O6: what failed is told, with who, when and why. Rows: those applied are the job's; replayed ones stand apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

from coordinator.checkpoint_folder import Damaged, record_of, verify_folder
from coordinator.model_files import ModelFiles
from coordinator.sharding import Rows
from coordinator.snapshots import Snapshot
from lockstep.contract.arithmetic import point_interval
from lockstep.contract.manifest import MANIFEST_FILE, Manifest
from lockstep.internal.v1 import agent_service_pb2 as agent
from tests.faults.simulation.arithmetic import F32
from tests.faults.simulation.diary import Diary
from tests.faults.simulation.job import JOB_ID, Job
from tests.faults.simulation.ledger import Ledger
from tests.faults.simulation.reference import Reference


@final
class Oracle:
    """Of one simulation: hears all events, sees all states, looks at the folder."""

    def __init__(self, job: Job, reference: Reference, files_folder: Path, diary: Diary) -> None:
        self._job, self._reference, self._diary = job, reference, diary
        self._folder = files_folder / "checkpoints" / JOB_ID
        self._files = ModelFiles(job.order, files_folder)
        plan = job.order.plan
        self._rows = Rows(plan.training_rows, job.batch_size, plan.steps_per_epoch)
        self._hashes: dict[int, tuple[str, ...]] = {}
        self._run_number = self._sequence = 0
        self._fingerprint = ""
        self.curves: dict[tuple[int, str], float] = {}
        self._of_run: set[tuple[int, str]] = set()
        self._events: list[agent.RunEvent] = []
        self.wrong: list[str] = []

    def says(self, oracle: str, text: str) -> None:
        """A violation."""
        self.wrong.append(f"{oracle}: {text}")
        self._diary.say("WRONG", self.wrong[-1])

    def watch(self, step: int, parameters: F32, velocity: F32) -> None:
        """A state that workers have behind a step."""
        if self._reference.differs(step, parameters, velocity):
            self.says("O1", f"the workers' state behind step {step} is not the reference's")

    def begins(self, order: agent.RunOrder) -> None:
        """A run begins."""
        if order.run_number <= self._run_number:
            self.says("O3", f"run {order.run_number} follows run {self._run_number}")
        self._run_number, self._sequence, self._of_run, self._events = order.run_number, 0, set(), []

    def hear(self, event: agent.RunEvent) -> None:
        """An event of a run."""
        if (event.run.run_number, event.sequence) != (self._run_number, self._sequence + 1):
            self.says(
                "O3", f"event {event.sequence} of run {event.run.run_number} follows {self._sequence} of {self._run_number}"
            )
        if self._events and self._events[-1].HasField("ended"):
            self.says("O3", "a run spoke after its end")
        self._sequence = event.sequence
        self._events.append(event)
        if event.HasField("started"):
            self._fingerprint = self._fingerprint or event.started.fingerprint
            if event.started.fingerprint != self._fingerprint:
                self.says("O3", f"workers of {event.started.fingerprint} go on with a job of {self._fingerprint}")
        if event.HasField("points"):
            for point in event.points.points:
                self._point((event.points.step, point.name), point.value)
        elif event.HasField("checkpoint") and event.checkpoint.weights_sha256 != self._hashes_of(event.checkpoint.step)[0]:
            self.says("O1", f"the checkpoint of step {event.checkpoint.step} has other weights than the reference")

    def _point(self, key: tuple[int, str], value: float) -> None:
        if key in self._of_run:
            self.says("O3", f"a run gave the point {key} twice")
        if self.curves.setdefault(key, value) != value:
            self.says("O3", f"the point {key} is {value}; an earlier run gave {self.curves[key]}")
        if self._reference.curves and self._reference.curves.get(key) != value:
            self.says("O1", f"the point {key} is {value}; the reference has {self._reference.curves.get(key)}")
        self._of_run.add(key)

    def run_ended(self, order: agent.RunOrder, ended: agent.RunEnded, ledger: Ledger, cut_off: bool) -> None:
        """A run ended, by a last word, or cut off: then what it still had to say is not to be had."""
        said = [event.notice.text for event in self._events if event.HasField("notice")] + [ended.reason]
        if not cut_off:
            for text in ledger.losses:
                if not any(text in line for line in said):
                    self.says("O6", f"nothing names the loss: {text}")
            for texts in ledger.failures:
                if not any(text in line for line in said for text in texts):
                    self.says("O6", f"nothing names the failure: {texts}")
        if ended.outcome == agent.RunEnded.SUCCEEDED:
            self._count_rows(order, ended, ledger)

    def _count_rows(self, order: agent.RunOrder, ended: agent.RunEnded, ledger: Ledger) -> None:
        progress = [event.progress for event in self._events if event.HasField("progress")]
        starts = [event.started.start_step for event in self._events if event.HasField("started")]
        if not progress or not starts:
            return  # a run that found all steps taken
        last = progress[-1].progress
        rows = self._job.training_rows * self._job.epochs
        if (last.step, last.applied_rows) != (self._job.total_steps, rows):
            self.says("rows", f"{last.applied_rows} were applied at step {last.step}; the job has {rows}")
        again = self._rows.between(starts[0], min(self._job.total_steps, order.furthest_step))
        if last.replayed_rows != again + ledger.dropped_rows:
            self.says("rows", f"{last.replayed_rows} were replayed; of earlier runs {again}, of this one {ledger.dropped_rows}")
        computed = self._rows.between(starts[0], self._job.total_steps) + ledger.dropped_rows
        if sum(ended.computed_rows) != computed:
            self.says("rows", f"{sum(ended.computed_rows)} were computed by the workers; {computed} were asked of them")

    def job_ended(self, succeeded: bool, left_clean: bool) -> None:
        """The job is over: looks at the folder."""
        manifests = [self._checkpoint(entry, left_clean) for entry in sorted(self._folder.iterdir()) if entry.is_dir()]
        if not succeeded:
            return
        last = max((found for found in manifests if found), key=lambda found: found.step, default=None)
        if last is None or last.step != self._job.total_steps:
            self.says("O1", "a job that succeeded has no checkpoint of its last step")
        elif self._reference.manifest:
            self._compare(last)
        every = point_interval(self._job.total_steps)
        steps = [step for step in range(1, self._job.total_steps + 1) if step % every == 0 or step == self._job.total_steps]
        wanted = {(step, "loss") for step in steps} | {(step, "learning_rate") for step in steps}
        if missing := (wanted | self._reference.curves.keys()) - self.curves.keys():
            self.says("O3", f"the curves have gaps: {sorted(missing)[:4]}")

    def _checkpoint(self, entry: Path, left_clean: bool) -> Manifest | None:
        if ".bad-" in entry.name:
            return None
        if entry.suffix in (".tmp", ".old"):
            if left_clean:
                self.says("O3", f"{entry.name} was left")
            return None
        try:
            manifest = verify_folder(entry)
        except Damaged as damaged:
            self.says("O1", f"a checkpoint that is left is damaged: {damaged}")
            return None
        files = tuple(record["sha256"] for _, record in sorted(manifest.files.items()))
        if (manifest.weights_sha256, *files) != self._hashes_of(manifest.step):
            self.says("O1", f"the checkpoint {entry.name} holds other weights or another optimizer's state than the reference")
        return manifest

    def _compare(self, manifest: Manifest) -> None:
        mine = json.loads(manifest.to_json())
        for name, value in self._reference.manifest.items():
            # When, by whom, where and with how many workers says nothing of what was trained.
            if name not in ("create_time", "run_number", "spec", "fingerprint", "manifest_sha256") and mine[name] != value:
                self.says("O1", f"the last manifest says {name} {mine[name]}; the reference's {value}")

    def manifest(self) -> dict[str, Any]:
        """The manifest of the last step."""
        (entry,) = self._folder.glob(f"{self._job.total_steps}-*")
        read: dict[str, Any] = json.loads((entry / MANIFEST_FILE).read_text())
        return read

    def _hashes_of(self, step: int) -> tuple[str, ...]:
        """weights_sha256, and the SHA-256 of each file, that the reference has at a step."""
        if step not in self._hashes:
            parameters, velocity = self._reference.states[step]
            files, sha256 = self._files.tensors(Snapshot(step, {"parameters": parameters, "velocity": velocity}))
            self._hashes[step] = (sha256, *(record_of(content)["sha256"] for _, content in sorted(files.items())))
        return self._hashes[step]
