"""How long a job waits: for its first step, after a worker was killed, under many kills. Exit status 1 where a bound is passed.

All of it on a real service, warm: one job has run before. Workers are killed by SIGKILL; their steps are counted from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from benchmarks.ddp_race.cases import BY_NAME, WORKERS
from benchmarks.ddp_race.ours import Jobs, applied_seconds
from benchmarks.machine import add_kernel, choose_kernel, end_on_sigterm, machine
from benchmarks.observed_steps import ObservedSteps, first_step_of_next_group
from benchmarks.tables import say, spread, table, verdict
from lockstep import Client
from lockstep.contract.arithmetic import default_shards
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.training_job_pb2 import JobEvent, TrainingJob
from tests.promises.service import Service

CASE = BY_NAME["784-512-256-10-b256"]
SAMPLES_PER_S = 30_000.0  # about what the first job will reach
TRIAL_S, WARM_S, MEND_S, WAIT_S = 8.0, 2.0, 60.0, 120.0
REST_S = 5.0  # after a job, until the next coordinator stands ready
BEFORE_KILL_S = 3.0  # of steps: past the short stretches at a group's beginning
KILL_EVERY_S = 10.0
LONG_JOB_S = 45.0

SUBMIT_S, REPLAY_S, SLOWDOWN = 1.0, 0.4, 1.5  # bounds of the medians


@final
@dataclass
class Found:
    """Seconds of each try; of the job under kills its time over an undisturbed one's, and how many were killed."""

    submit_s: list[float] = field(default_factory=list)
    next_submit_s: list[float] = field(default_factory=list)
    replay_s: list[float] = field(default_factory=list)
    beyond_s: list[float] = field(default_factory=list)
    replayed_steps: list[int] = field(default_factory=list)
    slowdown: list[float] = field(default_factory=list)
    kills: list[int] = field(default_factory=list)

    def rows(self) -> list[list[str]]:
        """Of the table: what was measured, and what is asked of its median."""
        measured = [
            ("submit to first step, the service at rest", self.submit_s, SUBMIT_S, "s"),
            ("submit to first step, right after another job", self.next_submit_s, None, "s"),
            ("SIGKILL of a worker to first replayed step", self.replay_s, REPLAY_S, "s"),
            (f"SIGKILL to a report beyond the last applied step{self._replayed()}", self.beyond_s, None, "s"),
            (f"a job with a kill every {KILL_EVERY_S:g} s{self._killed()}", self.slowdown, SLOWDOWN, "x"),
        ]
        return [
            [
                *(words, f"{spread(values)} {unit}", f"{max(values):.2f} {unit}", str(len(values))),
                "" if bound is None else f"{bound:g} {unit}",
                verdict(_above(words, values, bound)),
            ]
            for words, values, bound, unit in measured
            if values
        ]

    def missed(self) -> list[str]:
        """What passed its bound, in words."""
        return [
            *_above("submit to first step", self.submit_s, SUBMIT_S),
            *_above("SIGKILL to first replayed step", self.replay_s, REPLAY_S),
            *_above("a job under kills", self.slowdown, SLOWDOWN),
        ]

    def _replayed(self) -> str:
        return f" ({statistics.median(self.replayed_steps):g} steps replayed)" if self.replayed_steps else ""

    def _killed(self) -> str:
        return f", {statistics.median(self.kills):g} kills, over an undisturbed one" if self.kills else ""


def _above(words: str, values: list[float], bound: float | None) -> list[str]:
    if bound is None or not values or statistics.median(values) < bound:
        return []
    return [f"{words} {statistics.median(values):.2f} >= {bound:g}"]


@final
class Waits:
    """Measures on one service, job after job."""

    def __init__(self, service: Service, folder: Path) -> None:
        self._service, self._jobs = service, Jobs(service, folder, CASE)
        self._shards = default_shards(CASE.batch)
        self._samples_per_s = self._jobs.turn(self._shards, WORKERS, TRIAL_S, SAMPLES_PER_S)

    def spec(self, seconds: float) -> JobSpec:
        """A job of about so many seconds that goes on with one worker."""
        spec = self._jobs.spec(self._shards, WORKERS, max(1, round(seconds * self._samples_per_s / CASE.rows)))
        spec.workers.min = 1
        return spec

    def submit(self, rest_s: float) -> float:
        """Seconds from before a submission, so long after the job before, until a watcher hears of a step."""
        time.sleep(rest_s)
        with self._service.client() as client:
            began = time.monotonic()
            name = client.submit(self.spec(WARM_S)).name
            first = next(
                time.monotonic() for event in client.watch(name, timeout_s=WAIT_S) if event.HasField("points") or _step(event)
            )
            self._service.finished(name)
            client.delete(name)
        return first - began

    def kill(self, rank: int) -> tuple[float, float, int]:
        """Seconds from a SIGKILL to the other worker's first replayed step, and to a report beyond the last step that was
        applied before; and the steps that were replayed."""
        with self._service.client() as client:
            name = client.submit(self.spec(WAIT_S)).name
            next(event for event in client.watch(name, timeout_s=WAIT_S) if _step(event))
            time.sleep(BEFORE_KILL_S)
            (run,) = client.get(name).runs
            pids = [member.pid for member in run.members]
            if len(pids) != WORKERS or run.start_step:
                raise ValueError(f"{name} has {len(pids)} workers from step {run.start_step}, not {WORKERS} from 0")
            survivor = pids[1 - rank]
            steps = ObservedSteps.of(survivor)
            if steps is None:
                raise ValueError(f"process {survivor} is in no group")
            os.kill(pids[rank], signal.SIGKILL)
            killed = time.monotonic()
            replayed = first_step_of_next_group(survivor, steps, MEND_S)
            applied = steps.count
            beyond = next(
                (time.monotonic(), event.progress.replayed_rows)
                for event in client.watch(name, timeout_s=WAIT_S)
                if _step(event) > applied
            )
            client.cancel(name)
            client.wait(name, timeout_s=WAIT_S)
            client.delete(name)
        return replayed - killed, beyond[0] - killed, beyond[1] // CASE.batch

    def slowdown(self, seconds: float) -> tuple[float, int]:
        """The wall clock of a job with a kill every few seconds over that of the same job undisturbed, and the kills.

        Raises ValueError where its weights are others.
        """
        spec, kills = self.spec(seconds), 0

        def strike(client: Client, job: TrainingJob) -> None:
            nonlocal kills
            next_kill = 0.0
            for event in client.watch(job.name, timeout_s=10 * seconds):
                now = time.monotonic()
                if not _step(event):
                    continue
                next_kill = next_kill or now + KILL_EVERY_S
                if now >= next_kill:
                    members = client.get(job.name).runs[-1].members
                    os.kill(members[kills % len(members)].pid, signal.SIGKILL)
                    next_kill, kills = next_kill + KILL_EVERY_S, kills + 1

        undisturbed, plain = self._jobs.run(spec)
        disturbed, struck = self._jobs.run(spec, strike)
        if disturbed.result.weights_sha256 != undisturbed.result.weights_sha256:
            raise ValueError(f"{kills} kills changed the weights")
        return applied_seconds(struck) / applied_seconds(plain), kills


def _step(event: JobEvent) -> int:
    return event.progress.step if event.HasField("progress") else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/latency.py", description=__doc__)
    add_kernel(parser)
    parser.add_argument("--tries", type=int, default=9, help="submissions, and single kills (default 9)")
    parser.add_argument("--long-jobs", type=int, default=3, help="pairs of jobs, one of them under kills (default 3)")
    parser.add_argument("--seconds", type=float, default=LONG_JOB_S, help=f"of such a job (default {LONG_JOB_S:g})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    choose_kernel(options.kernel)
    end_on_sigterm()

    found = Found()
    with tempfile.TemporaryDirectory(prefix="lockstep-benchmark-") as scratch:
        folder = Path(scratch)
        with Service(folder, slots=WORKERS) as service:
            waits = Waits(service, folder)
            for _ in range(options.tries):
                found.submit_s.append(waits.submit(REST_S))
                found.next_submit_s.append(waits.submit(0))
                say(f"submit to first step {found.submit_s[-1]:.3f} s, then {found.next_submit_s[-1]:.3f} s")
            for number in range(options.tries):
                replay, beyond, steps = waits.kill(number % WORKERS)
                found.replay_s.append(replay)
                found.beyond_s.append(beyond)
                found.replayed_steps.append(steps)
                say(f"kill to first replayed step {replay:.3f} s, to a report beyond {beyond:.3f} s, {steps} steps replayed")
            for _ in range(options.long_jobs):
                slowdown, kills = waits.slowdown(options.seconds)
                found.slowdown.append(slowdown)
                found.kills.append(kills)
                say(f"{kills} kills: {slowdown:.2f}x")

    print(f"{machine()}; {CASE.title}, V={default_shards(CASE.batch)}, {WORKERS} workers")
    print(table(("what", "median [quartiles]", "worst", "tries", "bound", "bounds"), found.rows()))
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), **vars(found)}, indent=1) + "\n")
    return 1 if found.missed() else 0


if __name__ == "__main__":
    sys.exit(main())
