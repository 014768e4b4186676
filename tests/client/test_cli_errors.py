"""The command line when something is wrong: the message, and the exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.client.commands import Lockstep
from tests.client.fake_server import FakeServer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sumbit", "a"], "Did you mean 'submit'?"),
        (["submit", "--wacth", "a"], "--watch"),
        (["wait", "a", "--for", "DONE"], "succeeded"),
        (["wait", "a", "--timeout", "0"], "0"),
        (["wait", "a", "--timeout", "nan"], "nan is not a finite number"),
        (["wait", "a", "--timeout", "inf"], "inf is not a finite number"),
        (["watch", "a", "--after", str(2**64)], "is not in the range"),
        (["model", "pull", "a", "--step", str(2**64)], "is not in the range"),
        (["dataset", "push", "数据.npz"], "give a name: lockstep dataset push NAME 数据.npz"),
        (["jobs", "--limit", "x"], "x"),
        (["submit"], "FILE"),
        (["submit", "missing.yaml"], "error: missing.yaml: it cannot be read: No such file or directory"),
        (["--server", "http://x", "jobs"], "it must be HOST:PORT"),
        (["--token-file", "missing", "jobs"], "error: missing: the token file cannot be read"),
        (["show", "no-such-job"], "there is no job jobs/no-such-job"),
        (["show", "Bad name"], "it must match"),
    ],
)
def test_what_is_asked_wrongly_exits_with_2(lockstep: Lockstep, arguments: list[str], message: str) -> None:
    done = lockstep(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_wrong_token_exits_with_2(lockstep: Lockstep, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("wrong")
    done = lockstep("jobs")
    assert (done.code, done.err) == (2, "error: this server does not know the token\n")


def test_a_service_that_cannot_be_reached_exits_with_3(lockstep: Lockstep) -> None:
    done = lockstep("--server", "127.0.0.1:1", "version", "--json")
    assert (done.code, done.out) == (3, "")
    assert "start it with `lockstep-server up`" in done.err


def test_a_service_that_fails_exits_with_3(lockstep: Lockstep, server: FakeServer) -> None:
    server.failures.append(grpc.StatusCode.INTERNAL)
    done = lockstep("jobs")
    assert done.code == 3
    assert "please report it" in done.err


def test_a_fault_of_the_client_shows_no_trace_unasked(
    lockstep: Lockstep, monkeypatch: pytest.MonkeyPatch, job_file: Path
) -> None:
    monkeypatch.setattr("lockstep.client.Client.submit", lambda *_, **__: 1 / 0)
    done = lockstep("submit", str(job_file))
    assert done.code == 3
    assert done.err == (
        "error: ZeroDivisionError: division by zero (please report it, with the output under LOCKSTEP_TRACE=1)\n"
    )
    monkeypatch.setenv("LOCKSTEP_TRACE", "1")
    assert "Traceback" in lockstep("submit", str(job_file)).err


@pytest.mark.parametrize(
    ("redirected", "code", "message"),
    [
        ("| (read -r line)", 0, ""),
        ("> /dev/full", 2, "error: stdout: it cannot be written: No space left on device\n"),
        (">&-", 0, ""),
    ],
)
def test_where_results_cannot_go(redirected: str, code: int, message: str) -> None:
    """A reader that left is no failure, nor is a closed stdout; a full disk is one, and is told as such."""
    script = f"set -o pipefail; {sys.executable} -c 'from lockstep.cli import main; main()' explain --json {redirected}"
    done = subprocess.run(["bash", "-c", script], stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, message)


def test_every_command_has_help_and_json(lockstep: Lockstep) -> None:
    from lockstep.cli.app import group

    documented = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for code in ("0", "1", "2", "3", "130"):
        assert f"\n  {code} " in lockstep("--help").out[-500:].replace("\n    ", "\n  ")
        assert f"\n| {code} |" in documented
    pending: list[tuple[tuple[str, ...], Any]] = [((), group)]
    leaves = 0
    while pending:
        path, command = pending.pop()
        if hasattr(command, "commands"):
            pending += [((*path, name), inner) for name, inner in command.commands.items()]
        else:
            leaves += 1
            assert f"lockstep {' '.join(path)}" in documented, path
            told = lockstep(*path, "--help").out
            assert "--json" in told, path
    assert leaves >= 19
