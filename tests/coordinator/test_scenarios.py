"""What a run decides about failures, as scenarios in text: a line with > is what happens, the lines under it what follows.

Each file of tests/scenarios is one run, on from its first line. `LOCKSTEP_REWRITE_SCENARIOS=1` writes what follows anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coordinator.exit_status import Cause
from coordinator.group.group import WorkerLoss
from coordinator.recovery import EndRun, GroupFailed, Patience, Regroup
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.internal.v1 import worker_pb2
from lockstep.v1 import job_spec_pb2

FOLDER = Path(__file__).parent.parent / "scenarios"
LOSSES = {
    "kill": (Cause.KILLED, "was killed from outside (SIGKILL)"),
    "crash": (Cause.CRASHED, "crashed (SIGSEGV)"),
    "starve": (Cause.OUT_OF_MEMORY, "was killed by the kernel because memory ran out (SIGKILL)"),
    "hang": (Cause.LATE, "did not answer within 60 s"),
    "cut off": (Cause.NODE_GONE, "is out of the cluster, gone with its node"),
}


class Run:
    """The state of a scenario."""

    def __init__(self) -> None:
        self.size, self.step, self.patience = 0, 0, Patience()

    def happens(self, line: str) -> str:
        """One line in, what follows out."""
        said, _, seconds = line.partition(", in vain for ")
        vain_s = float(seconds.removesuffix(" s") or 1)
        verb, *rest = said.split(" ")
        match verb, rest:
            case "workers", [count]:
                self.size = int(count)
                return f"{self.size} workers"
            case "stretch", [steps]:
                self.step, self.patience = self.step + int(steps), Patience()
                return f"stands at step {self.step}"
            case "miss", [rank, "by", *peers]:
                text = f"worker {rank} did not reach step {self.step + 1}"
                failure = worker_pb2.Failure(kind=worker_pb2.Failure.PEER, text=text, missing_ranks=[int(rank)])
                return self.fails((), dict.fromkeys(map(int, peers), failure), [int(rank)], vain_s)
            case "unlink", [rank, peer]:
                text = f"worker {peer} closed its link"
                failure = worker_pb2.Failure(kind=worker_pb2.Failure.PEER, text=text, missing_ranks=[int(peer)])
                return self.fails((), {int(rank): failure, int(peer): failure}, [], vain_s)
            case "fail", [kind, ranks, *words]:
                failures = {
                    int(rank): worker_pb2.Failure(
                        kind=worker_pb2.Failure.Kind.Value(kind),
                        text=f"worker {rank}: {' '.join(words)}",
                        trace=" ".join(words),
                    )
                    for rank in ranks.split(",")
                }
                return self.fails((), failures, [], vain_s)
        verb, ranks = said.rsplit(" ", 1)
        losses = [WorkerLoss(int(rank), "n", 100 + int(rank), *LOSSES[verb]) for rank in ranks.split(",")]
        return self.fails(losses, {}, [], vain_s)

    def fails(
        self, losses: list[WorkerLoss] | tuple[()], failures: dict[int, worker_pb2.Failure], silent: list[int], vain_s: float
    ) -> str:
        """The group fails; the decision is carried out and told."""
        failure = GroupFailed(self.step, "taking steps", losses, failures, silent, self.size)
        decision, self.patience = self.patience.after(failure, job_spec_pb2.FAIL, vain_s)
        if isinstance(decision, EndRun):
            outcome = agent.RunEnded.Outcome.Name(decision.outcome)
            cause = agent.RunEnded.Cause.Name(decision.cause) if decision.cause else ""
            return f"the run ends: {outcome} {cause}".rstrip() + f"\n{decision.reason}"
        assert isinstance(decision, Regroup)
        self.size -= len(decision.lost)
        when = "later" if decision.hire_later else "at once"
        return (
            f"{decision.notice}: {decision.reason}\n"
            f"{self.size} go on after step {self.step}; {len(decision.lost)} asked for {when}"
        )


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_what_happens_leads_to_what_follows(path: Path) -> None:
    run, found = Run(), []
    for line in path.read_text().splitlines():
        if line.startswith("#") or not line:
            found.append(line)
        elif line.startswith("> "):
            found += [line, run.happens(line.removeprefix("> "))]
    text = "\n".join(found) + "\n"
    if os.environ.get("LOCKSTEP_REWRITE_SCENARIOS"):
        path.write_text(text)
    assert path.read_text() == text
