"""Each example, by the commands in its header: it trains to the quality that the header states, and its gradients are right."""

from __future__ import annotations

import json
import operator
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .service import BIN, CLI_S, EXAMPLES, Service, example

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

JOBS = sorted(path.name for path in EXAMPLES.glob("*.yaml"))
TRAINED = [name for name in JOBS if name != "digits-long.yaml"]


def header(name: str) -> str:
    """The comment at a job file's head."""
    lines = (EXAMPLES / name).read_text().splitlines()
    return "\n".join(lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))])


def commands(name: str) -> list[list[str]]:
    """The commands in an example's header."""
    return [line.split() for line in re.findall(r"^#   (.+)$", header(name), re.M)]


def run(command: list[str], service: Service, folder: Path) -> str:
    """Runs a command of a header in a folder with a copy of the examples; gives what it says on stdout."""
    program = {".venv/bin/python": sys.executable, "lockstep": str(BIN / "lockstep")}[command[0]]
    done = subprocess.run(
        [program, *command[1:]],
        env=service.environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=CLI_S,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples as they are in the repository, without the data that they make."""
    copied = tmp_path_factory.mktemp("clone")
    shutil.copytree(EXAMPLES, copied / "examples", ignore=shutil.ignore_patterns("brackets.npz", "friedman.csv"))
    return copied


@pytest.fixture(scope="module")
def registered(service: Service, folder: Path) -> Path:
    """The same folder, when all that stands before `submit` in the headers has run."""
    for command in sorted({tuple(command) for name in JOBS for command in commands(name)[:-1]}):  # Python, then `lockstep`
        run(list(command), service, folder)
    return folder


@pytest.mark.parametrize("name", TRAINED)
def test_it_reaches_what_its_header_says(service: Service, registered: Path, name: str) -> None:
    ((metric, least),) = re.findall(r"^# reaches: (\S+) >= (\S+)$", header(name), re.M)
    submit = commands(name)[-1]
    assert submit == ["lockstep", "submit", "--watch", f"examples/{name}"]
    job = service.finished(run(submit, service, registered).splitlines()[0])
    assert operator.attrgetter(metric)(job.result) >= float(least)


def test_the_gradients_of_all_examples_are_right(service: Service, registered: Path) -> None:
    lines = run(["lockstep", "gradcheck", "--json", *(f"examples/{name}" for name in JOBS)], service, registered)
    jobs = [json.loads(line) for line in lines.splitlines()]
    assert [job["spec"]["name"] for job in jobs] == [example(name).name for name in JOBS]
    for job in jobs:
        check = job["result"]["gradient_check"]
        assert (job["kind"], job["state"]) == ("GRADIENT_CHECK", "SUCCEEDED")
        assert 0 < check["worst_relative_error"] < check["tolerance"] == 1e-6 and check["rows"] == 16
        assert all(int(tensor["checked"]) > 0 for tensor in check["tensors"])
        assert service.finished(job["name"]).result.gradient_check.worst_relative_error == check["worst_relative_error"]


def test_digits_long_is_the_same_job_for_longer() -> None:
    long, short = example("digits-long.yaml"), example("digits.yaml")
    for spec in (long, short):
        spec.ClearField("name")
        spec.ClearField("checkpoints")
        spec.ClearField("evaluation")
        spec.training.ClearField("epochs")
    assert long == short
