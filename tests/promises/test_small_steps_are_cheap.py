"""A job starts at once, and no message leaves the worker group per step: socket calls grow with stretches, not with steps."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.v1.training_job_pb2 import TrainingJob

from .service import Service, example, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(200)]

STEPS = 10_000
FIRST_STEP_S = 2.0
CALLS = "sendto,sendmsg,sendmmsg,recvfrom,recvmsg,recvmmsg,read,readv,write,writev"
# "4242  12:00:00 sendmsg(17<TCP:[127.0.0.1:1->127.0.0.1:2]>, ..." and the like, with UNIX, UNIX-STREAM, socket or TCPv6.
ON_A_SOCKET = re.compile(r"^(\d+) +(\w+)\(\d+<(?:socket|TCP|UDP|UNIX|NETLINK)[^>]*", re.M)


@contextlib.contextmanager
def traced(pid: int, log: Path) -> Iterator[None]:
    """Records the calls of all threads of a process while the body runs."""
    command = ["strace", "-f", "-yy", "-s", "0", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(log), "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert tracer.stderr is not None
        assert "attached" in tracer.stderr.readline()
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=20)


def calls_on_sockets(log: Path) -> Counter[str]:
    """How often each call was made on a socket."""
    return Counter(name for _, name in ON_A_SOCKET.findall(log.read_text(errors="replace")))


def test_a_warm_service_takes_the_first_step_within_two_seconds(service: Service) -> None:
    seconds = []
    for _ in range(3):
        with service.client() as client:
            begin = time.monotonic()
            job = client.submit(example("digits.yaml", workers=(2, 2)))
            for event in client.watch(job.name, timeout_s=60):
                if event.HasField("points") or (event.HasField("progress") and event.progress.step > 0):
                    seconds.append(time.monotonic() - begin)
                    break
        service.finished(job.name)
    print("first step after", ", ".join(f"{each:.2f} s" for each in seconds))
    assert min(seconds) < FIRST_STEP_S


def test_socket_calls_do_not_grow_with_steps(service: Service, tmp_path: Path) -> None:
    assert shutil.which("strace"), "strace is missing: apt-get install strace"
    spec = example("digits.yaml", workers=(2, 2))
    spec.training.epochs = 100_000
    spec.evaluation.every_steps = spec.checkpoints.every_steps = 1_000_000
    with service.client() as client:
        job = client.submit(spec).name
        wait_until("the job steps", lambda: client.get(job).progress.step > 1000, 60)
        members = client.get(job).runs[0].members
        assert len(members) == 2
        processes = {"coordinator": service.coordinator(job), **{f"worker {each.rank}": each.pid for each in members}}
        logs = {name: tmp_path / f"{name}.strace" for name in processes}
        with contextlib.ExitStack() as stack:
            for name, pid in processes.items():
                stack.enter_context(traced(pid, logs[name]))
            first, begin = client.get(job).progress.step, time.monotonic()
            wait_until(f"{STEPS} steps", lambda: client.get(job).progress.step >= first + STEPS, 100, 0.2)
            steps, seconds = client.get(job).progress.step - first, time.monotonic() - begin
        client.cancel(job)
        assert client.wait(job, timeout_s=60).state == TrainingJob.CANCELLED
    counts = {name: calls_on_sockets(log) for name, log in logs.items()}
    print(f"{steps} steps in {seconds:.1f} s;", {name: dict(found) for name, found in counts.items()})
    assert sum(counts["coordinator"].values()) > 0, "nothing was traced"
    # A stretch lasts about a second; Ray's own beats come by the second as well.
    for name, found in counts.items():
        assert sum(found.values()) < 60 * (seconds + 2), name
        assert sum(found.values()) < steps / 10, name
