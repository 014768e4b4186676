"""A real service for the tests: `lockstep-server up` as a child process, and what it must not leave behind."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from lockstep import Client
from lockstep.spec import read
from lockstep.v1.job_spec_pb2 import JobSpec, Workers
from lockstep.v1.training_job_pb2 import JobEvent, TrainingJob
from tests.leftovers import abandoned_segments, process_folders, segments

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
BIN = Path(sys.executable).parent
MARK = "LOCKSTEP_TEST_MARK"
READY_S = 90
STOP_S = 30
CLI_S = 120
GONE_S = 5


def wait_until(what: str, holds: Callable[[], bool], timeout_s: float, pause_s: float = 0.05) -> None:
    """Waits for a condition; fails with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(pause_s)


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nothing listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def example(name: str, *, workers: tuple[int, int] | None = None, seed: int | None = None) -> JobSpec:
    """An example job, with other workers (min, max) or another seed."""
    spec = JobSpec()
    spec.CopyFrom(read(EXAMPLES / name).spec)
    if workers is not None:
        spec.workers.CopyFrom(Workers(min=workers[0], max=workers[1]))
    if seed is not None:
        spec.training.seed = seed
    return spec


class Service:
    """`lockstep-server up` on free ports with a data folder of its own; leaving the `with` stops it and looks for leftovers."""

    def __init__(self, folder: Path, slots: int = 3) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "up.log"
        self._mark = secrets.token_hex(8)
        self.slots = slots
        self.port, self.http_port = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LOCKSTEP_", "RAY_"))},
            "XDG_STATE_HOME": str(folder / "state"),
            "LOCKSTEP_SERVER": self.address,
            MARK: self._mark,
        }
        self.token_file = folder / "state" / "lockstep" / "tokens" / f"127.0.0.1_{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._started: list[subprocess.Popen[bytes]] = []
        self._scratch: set[str] = set()
        self._segments = segments()

    def start(self) -> None:
        """Starts what serves."""
        ports = ["--port", str(self.port), "--http-port", str(self.http_port)]
        self._process = self.command("up", "--data", str(self.data), "--slots", str(self.slots), *ports)

    def stop(self) -> None:
        """Stops it in good order."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(STOP_S)
        assert status in (0, -signal.SIGTERM, 128 + signal.SIGTERM), self.log.read_text()[-3000:]

    def command(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts `lockstep-server` with these arguments."""
        command = [str(BIN / "lockstep-server"), *arguments]
        with self.log.open("ab") as log:
            self._started.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            )
        return self._started[-1]

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_until_ready()
        except BaseException:
            print(self.log.read_text()[-5000:], file=sys.stderr)
            self._end()
            raise
        self._scratch = self._temporary_folders()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._scratch |= self._temporary_folders()
        try:
            self.stop()
            left: dict[int, str] = {}
            deadline = time.monotonic() + GONE_S
            while (left := self.processes()) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not left, f"processes are left after SIGTERM: {left}"
            shared = abandoned_segments(self._segments)
            assert not shared, f"shared memory is left: {shared}"
            folders = {name for name in self._scratch if os.path.exists(name)}
            assert not folders, f"temporary folders are left: {folders}"
            assert not self.token_file.exists(), "the token's file is left"
        finally:
            self._end()

    def wait_until_ready(self) -> None:
        """Until all slots are there."""
        wait_until("the service is ready", self._is_ready, READY_S, 0.1)

    def client(self) -> Client:
        """A client of the service."""
        return Client(self.address, token_file=self.token_file)

    def cli(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Runs `lockstep` with these arguments."""
        command = [str(BIN / "lockstep"), *arguments]
        env = {**self.environment, **(environment or {})}
        return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=CLI_S, check=False)

    def push_examples(self) -> None:
        """Registers digits and iris."""
        with self.client() as client:
            client.push_dataset(EXAMPLES / "digits.npz", "digits")
            client.push_dataset(EXAMPLES / "iris.csv", "iris", label="species")

    def finished(self, job: str, timeout_s: float = 120) -> TrainingJob:
        """Waits for a job's success."""
        with self.client() as client:
            ended = client.wait(job, timeout_s=timeout_s)
        assert ended.state == TrainingJob.SUCCEEDED, f"{TrainingJob.State.Name(ended.state)}: {ended.status_detail}"
        return ended

    def run(self, spec: JobSpec, timeout_s: float = 120) -> TrainingJob:
        """Submits a job and waits for its success."""
        with self.client() as client:
            name = client.submit(spec).name
        return self.finished(name, timeout_s)

    def wait_for_step(self, job: str, step: int, timeout_s: float) -> None:
        """Returns once the job has reported this step."""
        with self.client() as client:
            for event in client.watch(job, timeout_s=timeout_s):
                if event.HasField("progress") and event.progress.step >= step:
                    return
        raise AssertionError(f"{job} ended before step {step}")

    def events(self, job: str) -> list[JobEvent]:
        """All stored events of an ended job."""
        with self.client() as client:
            return list(client.watch(job, timeout_s=60))

    def curve(self, job: str) -> list[tuple[int, str, float]]:
        """The points of a job's curves by step; each step and name is there once."""
        points = [
            (event.points.step, point.name, point.value)
            for event in self.events(job)
            if event.HasField("points")
            for point in event.points.points
        ]
        assert len({(step, name) for step, name, _ in points}) == len(points) > 0
        return sorted(points)

    def processes(self) -> dict[int, str]:
        """All processes of the service, by id, with their command lines; known by what they inherited."""
        found = {}
        wanted = f"{MARK}={self._mark}".encode()
        for pid, folder in process_folders():
            with contextlib.suppress(OSError):
                if pid != os.getpid() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        return found

    def agent(self) -> int:
        """The agent's process id."""
        (pid,) = [pid for pid, command in self.processes().items() if re.search(r"-m coordinator\.agent\b", command)]
        return pid

    def ray_head(self) -> int:
        """The process without which Ray is gone."""
        (pid,) = [pid for pid, command in self.processes().items() if re.search(r"gcs_server\b", command.split()[0])]
        return pid

    def coordinator(self, job: str) -> int:
        """The process id of the coordinator that holds a job's lock."""
        lock = str(self.data / "files" / "checkpoints" / job.removeprefix("jobs/") / "lock")
        for pid in self.processes():
            with contextlib.suppress(OSError):
                for descriptor in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        if os.readlink(f"/proc/{pid}/fd/{descriptor}") == lock:
                            return pid
        raise AssertionError(f"no process holds {lock}")

    def _is_ready(self) -> bool:
        ended = [f"{process.args!r} ended with {process.returncode}" for process in self._started if process.poll() is not None]
        assert not ended, ended
        if not self.token_file.exists():
            return False
        try:
            with Client(self.address, token_file=self.token_file, deadline_s=2) as client:
                cluster = client.cluster()
        except Exception as error:  # not yet listening, or the token is not yet written
            if type(error).__name__ not in ("ServerUnavailable", "UserError"):
                raise
            return False
        return cluster.agent_connected and cluster.slots == self.slots

    def _temporary_folders(self) -> set[str]:
        """Folders directly under /tmp that the service's command lines name."""
        names = {name for command in self.processes().values() for name in re.findall(r"/tmp/[^/\s,:=\"']+", command)}
        kept = (str(self.folder), str(ROOT), sys.prefix)
        return {name for name in names if not any(path.startswith(name) for path in kept) and os.path.isdir(name)}

    def _end(self) -> None:
        """The last resort of a failed test: ends what it started, by id."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait(STOP_S)
