"""The compose cluster under test: built, started with two workers, killed and started service by service."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import lockstep
from tests.cluster.engine import ROOT, Engine

SERVICES = ("api", "coordinator", "worker", "prometheus")  # Grafana's image cannot be had everywhere
READY_WITHIN_S = 120

Found = TypeVar("Found")


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(what: str, find: Callable[[], Found], within_s: float, every_s: float = 0.2) -> Found:
    """Waits until `find` gives something true; names what did not come."""
    deadline = time.monotonic() + within_s
    while not (found := find()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {within_s:g} s")
        time.sleep(every_s)
    return found


class Cluster:
    """docker-compose.yml with images built here, tokens of its own, free ports, and two worker containers."""

    def __init__(self, engine: Engine, folder: Path, write: Callable[[str], object]) -> None:
        self._engine = engine
        self._write = write
        self._project = f"lockstep-{uuid.uuid4().hex[:8]}"
        compose = shutil.which("docker-compose")
        assert compose is not None
        self._compose = (compose, "-p", self._project, "-f", "docker-compose.yml", "-f", "tests/cluster/compose.test.yml")
        self._secrets = folder / "secrets"
        self._ports = {name: free_port() for name in ("api", "http", "prometheus", "grafana")}
        self._environment = {
            "LOCKSTEP_IMAGE": f"{self._project}:test",
            "LOCKSTEP_PROMETHEUS_IMAGE": f"{self._project}-prometheus:test",
            "LOCKSTEP_SECRETS": str(self._secrets),
            "LOCKSTEP_PORT": str(self._ports["api"]),
            "LOCKSTEP_HTTP_PORT": str(self._ports["http"]),
            "LOCKSTEP_PROMETHEUS_PORT": str(self._ports["prometheus"]),
            "LOCKSTEP_GRAFANA_PORT": str(self._ports["grafana"]),
        }
        self._began = time.monotonic()

    def say(self, sentence: str) -> None:
        """Writes a sentence with the time since the beginning."""
        self._write(f"  [{time.monotonic() - self._began:6.1f} s] {sentence}")

    def compose(self, *arguments: str, timeout_s: float = 120) -> str:
        """Runs docker-compose on the cluster."""
        return self._engine.run(*self._compose, *arguments, timeout_s=timeout_s, environment=self._environment)

    def start(self) -> None:
        """Builds the images, starts all services, and waits until both workers have joined."""
        self._engine.build(self._environment["LOCKSTEP_IMAGE"], "deploy/Dockerfile")
        self.say("the image is built")
        folder = "tests/cluster/prometheus"
        self._engine.build(self._environment["LOCKSTEP_PROMETHEUS_IMAGE"], f"{folder}/Dockerfile", folder)
        self.say("the image of Prometheus is built")
        self._engine.run("scripts/secrets", environment=self._environment)
        self.compose("up", "-d", "--scale", "worker=2", *SERVICES)
        until("two worker slots", lambda: self.slots() == 2, READY_WITHIN_S)
        self.say("two workers have joined")

    def close(self) -> None:
        """Removes containers, volumes, networks and images."""
        self.compose("down", "--volumes", "--timeout", "5")
        for name in ("LOCKSTEP_IMAGE", "LOCKSTEP_PROMETHEUS_IMAGE"):
            self._engine.run("docker", "image", "rm", "--force", self._environment[name])

    def client(self) -> lockstep.Client:
        """A client with the users' token."""
        return lockstep.Client(f"127.0.0.1:{self._ports['api']}", token_file=self._secrets / "token")

    def slots(self) -> int:
        """Worker slots that the API server knows of; 0 while it or the agent is away."""
        try:
            with self.client() as client:
                found = client.cluster()
                return found.slots if found.agent_connected else 0
        except (lockstep.LockstepError, OSError):
            return 0

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers."""
        return self.compose("ps", "-q", service).split()

    def kill(self, container: str) -> None:
        """SIGKILL to all of a container."""
        self._engine.run("docker", "kill", "--signal", "KILL", container)

    def start_again(self, container: str) -> None:
        """Starts a killed container; the restart policy does not, since it takes a kill by hand for a wish."""
        self._engine.run("docker", "start", container)

    def restarts(self, container: str) -> int:
        """How often the restart policy has started a container again."""
        return int(self._engine.run("docker", "inspect", "--format", "{{.RestartCount}}", container))

    def exit_codes(self) -> dict[str, int]:
        """The exit code of each container, by its name."""
        ids = self.compose("ps", "-a", "-q").split()
        lines = self._engine.run("docker", "inspect", "--format", "{{.Name}} {{.State.ExitCode}}", *ids).splitlines()
        return {name: int(code) for name, code in map(str.split, lines)}

    def logs(self) -> str:
        """The last lines of each service."""
        return self.compose("logs", "--no-color", "--tail", "60")

    def run_in_image(self, *command: str, timeout_s: float = 120) -> str:
        """Runs a command with this repository's tests and examples beside the image's code, in the image's Python."""
        mounts = [f"--volume={ROOT / name}:/app/{name}:ro" for name in ("tests", "examples")]
        names = ("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES")  # as compose.test.yml has it
        options = ["--rm", "--network=none", "--entrypoint=python", *(f"--env={name}" for name in names if name in os.environ)]
        return self._engine.run(
            "docker", "run", *options, *mounts, self._environment["LOCKSTEP_IMAGE"], *command, timeout_s=timeout_s
        )

    def metrics(self) -> str:
        """What the API server exports now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['http']}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers to an instant query."""
        query = urllib.parse.urlencode({"query": expression})
        address = f"http://127.0.0.1:{self._ports['prometheus']}/api/v1/query?{query}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            body = json.load(answer)
        assert body["status"] == "success", body
        result = body["data"]["result"]
        assert isinstance(result, list)
        return result
