"""The compose file: both generations of Compose read it alike, and it keeps what the operators are promised."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.missing import needs

ROOT = Path(__file__).parent.parent.parent
OURS = ("api", "coordinator", "worker")


def read_by(command: str) -> dict[str, Any]:
    """The file as a Compose understands it, without values from the environment of this test."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
    # Neither generation asks an engine for this; a socket that is not there makes sure.
    environment["DOCKER_HOST"] = "unix:///nonexistent"
    done = subprocess.run(
        [command, "-f", "docker-compose.yml", "config"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)
    assert isinstance(read, dict)
    return read


def essence(read: dict[str, Any]) -> dict[str, Any]:
    """What both generations write alike: services with their commands, networks and secrets."""
    return {
        name: (
            service.get("command"),
            sorted(service["networks"]),
            sorted(secret["source"] for secret in service.get("secrets", [])),
        )
        for name, service in read["services"].items()
    }


def test_compose_1_29_reads_it() -> None:
    read = read_by(needs("docker-compose", "docker-compose"))
    assert set(read["services"]) == {*OURS, "prometheus", "grafana"}


@pytest.mark.docker
def test_compose_5_reads_it_as_1_29_does(tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", str(tmp_path)]
    subprocess.run([*install, "-r", str(ROOT / "tests/cluster/compose-v5.txt")], check=True, timeout=100)
    assert essence(read_by(str(tmp_path / "bin/docker-compose"))) == essence(read_by(needs("docker-compose", "docker-compose")))


def test_what_operators_are_promised() -> None:
    file = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert not {"name", "version", "include"} & set(file)
    assert file["networks"]["cluster"]["internal"] is True
    for name, service in file["services"].items():
        assert service["restart"] == "unless-stopped", name
        assert (
            service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"] and service["read_only"]
        ), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["logging"]["options"]["max-size"], name
    for name in OURS:
        assert "test" in file["services"][name]["healthcheck"]
    for name in ("coordinator", "worker"):
        # Ray is on the internal network alone, publishes nothing, and has room for its object store.
        service = file["services"][name]
        assert service["networks"] == ["cluster"] and "ports" not in service and service["shm_size"]
        assert not any(volume.startswith("store:") for volume in service["volumes"]), "the store is the API server's alone"
    environments = [str(service.get("environment", {})) for service in file["services"].values()]
    assert not any(word in text.lower() for text in environments for word in ("bearer", "secret=", "password="))
