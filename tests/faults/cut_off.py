"""Row 12: the agent cut off from the API server, both of them real, by a proxy that keeps their link silent; then it heals.

An API server that cannot be reached stops nothing: the job goes on in its one run, and whatever was kept back arrives.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import final

from tests.coordinator.proxy import BOTH_WAYS, Proxy, Way
from tests.faults.campaign import Verdict
from tests.faults.rows import Row
from tests.promises.runs import JOB_S, Run, job_of
from tests.promises.service import STOP_S, Service, free_ports

HOST = "127.0.0.1"
WORKERS = 2
CUTS = 10
_WORDS = {BOTH_WAYS: "both ways", (Way.THERE,): "from the agent", (Way.BACK,): "from the server"}


@final
@dataclass(frozen=True, slots=True)
class Cut:
    """The link is silent from a step of the job on, for some seconds, those ways."""

    step: int
    silent_s: float
    ways: tuple[Way, ...] = BOTH_WAYS


@final
@dataclass(frozen=True, slots=True)
class CutOffCase:
    """A service whose link is cut again and again, each time during a job of its own."""

    cuts: tuple[Cut, ...]
    row: int = 12

    @property
    def name(self) -> str:
        """All that is done."""
        return ", ".join(f"silent {_WORDS[cut.ways]} for {cut.silent_s:g} s from step {cut.step}" for cut in self.cuts)


@final
class CutOffService(Service):
    """`lockstep-server api` and an agent with workers as plain processes, which speaks to it through the proxy."""

    def __init__(self, folder: Path, proxy: Proxy) -> None:
        super().__init__(folder, WORKERS)
        self._proxy = proxy

    def start(self) -> None:
        """The API server, the proxy, the agent."""
        behind, before = free_ports(2)
        listen = ["--listen", self.address, "--http-listen", f"{HOST}:{self.http_port}", "--agent-listen", f"{HOST}:{behind}"]
        self._process = self.command("api", "--data", str(self.data), *listen)
        self._proxy.forward((HOST, before), (HOST, behind))
        token_file = self.data / "store" / "agent_token"
        command = [sys.executable, "-m", "coordinator.agent", "--server", f"{HOST}:{before}", "--token-file", str(token_file)]
        command += ["--files", str(self.data / "files"), "--slots", str(self.slots)]
        environment = {**self.environment, "LOCKSTEP_GROUP": "local"}
        with self.log.open("ab") as log:
            self._started.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self.folder)
            )

    def stop(self) -> None:
        """The agent, then the API server."""
        agent = self._started[-1]
        agent.terminate()
        assert agent.wait(STOP_S) == 0, self.log.read_text()[-3000:]
        super().stop()


def judge(case: CutOffCase) -> Verdict:
    """Runs the jobs, each of which must give what one worker gives undisturbed, in one run."""
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="lockstep-cut-off-") as folder,
        Proxy() as proxy,
        CutOffService(Path(folder), proxy) as service,
    ):
        service.push_examples()
        alone = service.run(job_of(1), JOB_S)
        for cut in case.cuts:
            run = Run(service, job_of(WORKERS))
            run.at(cut.step)
            silent_from = time.monotonic()
            proxy.hold(cut.silent_s, cut.ways)
            ended = run.ends_like(alone)
            assert len(ended.runs) == 1 and not ended.progress.replayed_rows, f"{cut}: the run was harmed"
            proxy.let_go()
            struck = time.monotonic() - silent_from > cut.silent_s
            assert struck or Way.THERE not in cut.ways, f"{cut}: the job's end came through the cut"
    return Verdict(case.row, len(case.cuts), True, time.monotonic() - began)


def _drawn(random: Random, cuts: int) -> CutOffCase:
    return CutOffCase(
        tuple(
            Cut(random.randint(20, 600), random.choice((1.0, 1.0, 10.0, 30.0)), random.choice(list(_WORDS)))
            for _ in range(cuts)
        )
    )


CUT_OFF = Row(
    12,
    "the agent cut off from the API server",
    lambda: [CutOffCase((Cut(100, 1.0), Cut(300, 1.0, (Way.THERE,)), Cut(200, 1.0, (Way.BACK,))))],
    _drawn,
    20,
    judge,
    in_one=CUTS,
    apart=True,
)
