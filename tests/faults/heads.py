"""Row 4: the agent and the Ray head killed, in a service with two Ray nodes; the jobs go on in new runs."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import final

from tests.faults.campaign import Verdict
from tests.faults.rows import Row
from tests.promises.nodes import Nodes
from tests.promises.runs import JOB_S, Run, job_of, kill_agent, kill_head, nothing_is_left

KILLS = 10
SLOTS = (2, 2)  # beside the head, and on the other node


@final
@dataclass(frozen=True, slots=True)
class HeadCase:
    """A service that undergoes one kill after another, each in a job of its own: of the head or the agent, at a step."""

    kills: tuple[tuple[bool, int], ...]
    row: int = 4

    @property
    def name(self) -> str:
        """All that is done."""
        return ", ".join(f"{'Ray head' if head else 'agent'} killed at step {step}" for head, step in self.kills)


def judge(case: HeadCase) -> Verdict:
    """Runs the jobs, each of which must give what one worker gives undisturbed, and leave nothing."""
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="lockstep-heads-") as folder,
        Nodes(Path(folder), SLOTS[0], [SLOTS[1]], step_deadline_s=5.0) as nodes,
    ):
        nodes.push_examples()
        alone = nodes.run(job_of(1), JOB_S)
        for head, step in case.kills:
            run = Run(nodes, job_of(sum(SLOTS), least=1))
            run.at(step)
            if head:
                kill_head(nodes, run)
            else:
                kill_agent(nodes)
            ended = run.ends_like(alone)
            assert len(ended.runs) >= 2, f"step {step}: the run was not lost"
            # From a checkpoint, every 100 steps; that of the last moment may not have been written.
            start_step, least = ended.runs[-1].start_step, max(0, step - 50) // 100 * 100
            assert start_step % 100 == 0 and start_step >= least, f"step {step}: began at {start_step}"
            nodes.wait_until_ready()
            nothing_is_left(nodes)
    return Verdict(case.row, len(case.kills), True, time.monotonic() - began)


def _drawn(random: Random, kills: int) -> HeadCase:
    return HeadCase(tuple((random.random() < 0.5, random.randint(20, 600)) for _ in range(kills)))


HEADS = Row(
    4,
    "agent or Ray head killed",
    lambda: [HeadCase(((False, 230), (True, 130)))],
    _drawn,
    60,
    judge,
    in_one=KILLS,
    apart=True,
    at_once=1,
)
