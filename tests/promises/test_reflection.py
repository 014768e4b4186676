"""Everything can be found and used through reflection, with nothing of ours but the token."""

from __future__ import annotations

import json
import subprocess

import pytest
from google.protobuf.json_format import MessageToDict

from .service import BIN, ROOT, Service, example

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


def curl(service: Service, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `buf curl` against the service."""
    value = f"authorization: Bearer {token or service.token_file.read_text().strip()}"
    command = [
        str(BIN / "buf"),
        "curl",
        "--protocol",
        "grpc",
        "--http2-prior-knowledge",
        "-H",
        value,
        "--reflect-header",
        value,
    ]
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_services_are_listed(service: Service) -> None:
    done = curl(service, "--list-services", f"http://{service.address}")
    assert done.returncode == 0, done.stderr
    ours = {f"lockstep.v1.{name}Service" for name in ("TrainingJob", "Dataset", "Cluster")}
    assert ours | {"grpc.health.v1.Health"} <= set(done.stdout.split())
    assert not any("internal" in name for name in done.stdout.split())


def test_a_job_is_created_from_json(service: Service) -> None:
    spec = MessageToDict(example("digits.yaml"), preserving_proto_field_name=True)
    spec["dataset"] = "datasets/digits"
    url = f"http://{service.address}/lockstep.v1.TrainingJobService/CreateTrainingJob"
    done = curl(service, "-d", json.dumps({"training_job": {"spec": spec}}), url)
    assert done.returncode == 0, done.stderr
    name = json.loads(done.stdout)["name"]
    assert service.finished(name).result.validation_accuracy >= 0.95


def test_without_the_token_nothing_is_shown(service: Service) -> None:
    done = curl(service, "--list-services", f"http://{service.address}", token="x" * 43)
    assert done.returncode != 0 and "lockstep.v1" not in done.stdout
