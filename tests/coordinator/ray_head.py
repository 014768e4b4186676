"""A small Ray for one module of tests: a head with CPUs in a process group of its own, ended by that group alone."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class RayHead:
    """Token authentication, no dashboard, ports chosen by the kernel, a short temporary folder that is removed.

    Whatever attaches to it needs its `environment`, to which variables may be added.
    """

    def __init__(self, cpus: int, environment: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lsray"))
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        root = Path(__file__).parents[2]
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_BACKEND_LOG_LEVEL": "error",
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "client")]),
            **(environment or {}),
        }
        port, client_port = _free_ports(2)
        self.address = f"127.0.0.1:{port}"
        ray = Path(sys.executable).parent / "ray"
        command = [str(ray), "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1"]
        command += [f"--num-cpus={cpus}", "--include-dashboard=false", f"--object-store-memory={100 << 20}"]
        command += [f"--ray-client-server-port={client_port}", f"--temp-dir={self.folder}"]
        self._log = (self.folder / "head.log").open("wb")
        self.process = subprocess.Popen(
            command, env={**os.environ, **self.environment}, stdout=self._log, stderr=self._log, start_new_session=True
        )
        end = time.monotonic() + 40
        while not (self.folder / "head.log").read_text().count("Ray runtime started"):
            if self.process.poll() is not None or time.monotonic() > end:
                said = (self.folder / "head.log").read_text()
                self.stop()
                raise AssertionError(said)
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends the whole group and removes the folder."""
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self._log.close()
        end = time.monotonic() + 10
        while self._left() and time.monotonic() < end:
            time.sleep(0.1)
        left = self._left()
        shutil.rmtree(self.folder)
        assert not left, left

    def _left(self) -> list[str]:
        """Processes that still name the temporary folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.folder) in words:
                found.append(f"{path.parent.name}: {words[:200]}")
        return found
