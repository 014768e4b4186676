"""A Docker engine for the tests: the machine's own, or one that lives as long as this object."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import IO, cast

ROOT = Path(__file__).parent.parent.parent
STARTS_WITHIN_S = 180


LACKS = 69  # deploy/docker-engine's exit code where something is to be installed


class MachineLacks(Exception):
    """No engine, since something is to be installed; says what."""


class Engine:
    """Holds deploy/docker-engine open by a pipe: however this process ends, the pipe closes and the engine goes."""

    def __init__(self) -> None:
        script = 'echo "${DOCKER_HOST:-}"; read -r _ || true'
        # Closed in close.
        self._log = cast("IO[str]", tempfile.TemporaryFile("w+"))  # noqa: SIM115
        self._process = subprocess.Popen(
            [ROOT / "deploy/docker-engine", "bash", "-c", script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        host = self._process.stdout.readline()
        if not host:
            status = self._process.wait(timeout=STARTS_WITHIN_S)
            self._log.seek(0)
            sentence = self._log.read().strip()
            raise MachineLacks(sentence) if status == LACKS else RuntimeError(f"no Docker engine: {sentence}")
        # Without BuildKit: Debian's engine has none.
        self._socket = host.strip().removeprefix("unix://")
        self.environment = {**os.environ, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}
        if self._socket:
            self.environment["DOCKER_HOST"] = host.strip()

    def run(self, *command: str | Path, timeout_s: float = 60, environment: dict[str, str] | None = None) -> str:
        """Runs a command against the engine; gives what it printed."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout.strip()

    def build(self, tag: str, dockerfile: str, context: str = ".") -> None:
        """Builds an image on the host's network, since an engine of our own gives containers no way out."""
        self.run("docker", "build", "--quiet", "--network=host", "--tag", tag, "--file", dockerfile, context, timeout_s=300)

    def close(self) -> None:
        """Ends an engine that was started for the tests, with all it holds; nothing of it is left."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        self._log.close()
        if self._socket and "DOCKER_HOST" not in os.environ:
            assert not Path(self._socket).parent.exists(), f"{Path(self._socket).parent} is left"
