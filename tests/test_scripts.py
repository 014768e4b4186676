"""The scripts say what is missing, in a sentence, before they touch anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(script: str, *arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script of the repository's copy in `folder`."""
    return subprocess.run(
        [folder / script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def fake_python(folder: Path, body: str) -> str:
    """An executable that stands for a Python."""
    path = folder / "python-of-the-test"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What scripts/setup reads, without a .venv."""
    for name in ("scripts", "locks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "client").mkdir()
    for name in ("pyproject.toml", "client/pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_setup_wants_a_python_that_is_there(clone: Path) -> None:
    done = run("scripts/setup", "--python", "/nonexistent/python3", folder=clone)
    assert done.returncode == 1
    assert done.stderr == "setup: /nonexistent/python3 is not there; name a Python from 3.11 to 3.14\n"


def test_setup_refuses_an_old_python(clone: Path) -> None:
    done = run(
        "scripts/setup", folder=clone, LOCKSTEP_PYTHON=fake_python(clone, "case $1 in -V) echo Python 3.9.2;; *) exit 1;; esac")
    )
    assert done.returncode == 1
    assert "is Python 3.9.2; it must be Python 3.11 to 3.14" in done.stderr


def test_setup_names_the_package_without_which_there_are_no_environments(clone: Path) -> None:
    # As Debian's python3 is without python3-venv.
    python = fake_python(clone, 'case "$2" in *ensurepip*) exit 1;; *print*) echo 3.11;; esac')
    done = run("scripts/setup", "--python", python, folder=clone)
    assert done.returncode == 1
    assert "on Debian: apt-get install python3.11-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_setup_names_its_options(clone: Path) -> None:
    done = run("scripts/setup", "--everything", folder=clone)
    assert (done.returncode, done.stderr) == (1, "setup: got --everything; the options are --dev and --python PYTHON\n")


def test_secrets_are_made_once_and_for_their_owner(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    assert run("scripts/secrets", LOCKSTEP_SECRETS=str(folder)).returncode == 0
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(made) == {"token", "agent_token", "ray_token", "grafana_password"}
    assert all(len(secret) == 64 for secret in made.values()) and len(set(made.values())) == 4
    assert folder.stat().st_mode & 0o777 == 0o700
    # In a container the reader is another user.
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
    assert run("scripts/secrets", LOCKSTEP_SECRETS=str(folder)).stderr == ""
    assert {path.name: path.read_text() for path in folder.iterdir()} == made


def test_the_engine_says_what_a_machine_lacks(tmp_path: Path) -> None:
    for command in ("bash", "mktemp", "rm", "id", "env"):
        (tmp_path / command).symlink_to(shutil.which(command) or "")
    done = run("deploy/docker-engine", "true", PATH=str(tmp_path))
    assert done.returncode == 69
    assert "no Docker engine answers, and " in done.stderr
