"""The operators' commands: settings and where they come from, refusals that name the owner, children that do not outlive us."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from lockstep.contract.errors import UserError
from services.addresses import Address
from services.cluster import write_secret
from services.commands.settings import kept_token
from services.processes.owners import bind, owner_of_port
from services.server import COMMANDS, main

SERVER = [sys.executable, "-m", "services.server"]
DEADLINE_S = 20


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_flag_over_environment_over_default() -> None:
    runner = CliRunner()
    answer = runner.invoke(main, ["config", "up", "--port", "8000"], env={"LOCKSTEP_SLOTS": "3", "LOCKSTEP_PORT": "9000"})
    lines = {line.split("\t")[0]: line.split("\t")[1:] for line in answer.stdout.splitlines()}
    assert lines["--port"] == ["8000", "flag"]
    assert lines["--slots"] == ["3", "environment LOCKSTEP_SLOTS"]
    assert lines["--http-port"] == ["7461", "default (LOCKSTEP_HTTP_PORT is not set)"]
    assert lines["--data"][0].endswith("lockstep")


def test_every_command_explains_itself() -> None:
    runner = CliRunner()
    for name in COMMANDS:
        answer = runner.invoke(main, [name, "--help"])
        assert answer.exit_code == 0 and answer.stdout
    assert "lockstep-server up" in runner.invoke(main, ["--help"]).stdout


def test_beyond_loopback_tokens_are_required(tmp_path: Path) -> None:
    runner, data = CliRunner(), ["--data", str(tmp_path)]
    for flag, wanted in (
        ("--listen", "--token-file"),
        ("--http-listen", "--token-file"),
        ("--agent-listen", "--agent-token-file"),
    ):
        done = runner.invoke(main, ["api", *data, flag, "0.0.0.0:0"])
        assert done.exit_code == 2 and wanted in done.stderr and "needs tokens" in done.stderr
    short = tmp_path / "short"
    short.write_text("short\n")
    done = runner.invoke(main, ["api", *data, "--token-file", str(short)])
    assert done.exit_code == 2 and "at least 16 characters" in done.stderr


def test_a_taken_port_is_named_with_its_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"process {os.getpid()} (" in owner_of_port(port)
        with pytest.raises(UserError, match=f"--port: got {port}; the port is taken by process {os.getpid()}"):
            bind("--port", "127.0.0.1", port)


@pytest.mark.parametrize("text", ["", "7460", "a b:1", "host:99999", "host:", "[::1]"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="HOST:PORT"):
        Address.parse(text, "--listen")


def test_addresses() -> None:
    assert Address.parse("[::1]:5", "x") == Address("::1", 5) and str(Address("::1", 5)) == "[::1]:5"
    assert Address.parse("127.3.0.1:5", "x").is_loopback and not Address.parse("0.0.0.0:5", "x").is_loopback
    assert not Address.parse(":5", "x").is_loopback


def test_an_api_server_alone_is_ready_healthy_and_leaves_nothing(tmp_path: Path) -> None:
    data, state = tmp_path / "data", tmp_path / "state"
    ports = ["--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--agent-listen=127.0.0.1:0"]
    command = [*SERVER, "api", "--data", str(data), *ports]
    env = {**os.environ, "XDG_STATE_HOME": str(state)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None and process.stderr is not None
        address = process.stdout.readline().split()[1]
        token_file = state / "lockstep" / "tokens" / address.replace(":", "_")
        assert token_file.stat().st_mode & 0o777 == 0o600 and data.stat().st_mode & 0o777 == 0o700
        runner = CliRunner()
        assert runner.invoke(main, ["health", "--grpc", address]).stdout == "SERVING\n"
        cluster = runner.invoke(main, ["health", "--grpc", address, "--service", "lockstep.v1.ClusterService"])
        assert cluster.exit_code == 1 and "NOT_SERVING" in cluster.stderr
        second = runner.invoke(main, ["api", "--data", str(data), *ports])
        assert second.exit_code == 2 and f"in use by process {process.pid} (" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
        assert token_file.exists() is False and json.loads(process.stderr.readline())["event"] == "listening"


def test_a_data_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in ("up", "api"):
        for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
            done = CliRunner().invoke(main, [command, "--data", str(path)])
            assert done.exit_code == 2 and f"--data: got {path}; it cannot be made a folder" in done.stderr


def test_the_token_of_a_data_folder_outlives_a_restart(tmp_path: Path) -> None:
    token = kept_token(tmp_path)
    assert len(token) >= 32 and kept_token(tmp_path) == token != kept_token(tmp_path / "other")
    assert (tmp_path / "store" / "client_token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("replaced", [False, True])
def test_a_guard_removes_its_own_and_not_what_a_successor_put_there(tmp_path: Path, replaced: bool) -> None:
    secret, started = tmp_path / "secret", tmp_path / "started"
    write_secret(secret, "first")
    script = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(600)"
    order = {"command": [sys.executable, "-c", script], "grace_s": 1, "remove": [str(secret)], "remove_if_stopped": []}
    guard = subprocess.Popen([sys.executable, "-m", "services.processes.guard"], stdin=subprocess.PIPE)
    with guard:
        assert guard.stdin is not None
        guard.stdin.write(json.dumps(order).encode() + b"\n")
        guard.stdin.flush()
        until(started.exists)
        if replaced:
            write_secret(secret, "first")  # the same words, another file
        guard.stdin.close()
        guard.wait(DEADLINE_S)
    assert secret.exists() is replaced


@pytest.mark.parametrize("stopped", [False, True])
def test_what_others_still_need_stays_when_a_command_ends_by_itself(tmp_path: Path, stopped: bool) -> None:
    scratch, token, started = tmp_path / "scratch", tmp_path / "token", tmp_path / "started"
    scratch.mkdir()
    write_secret(token, "for the command that follows")
    script = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep({600 if stopped else 0})"
    order = {"command": [sys.executable, "-c", script], "grace_s": 1}
    order |= {"remove": [str(scratch)], "remove_if_stopped": [str(token)]}
    with subprocess.Popen([sys.executable, "-m", "services.processes.guard"], stdin=subprocess.PIPE) as guard:
        assert guard.stdin is not None
        guard.stdin.write(json.dumps(order).encode() + b"\n")
        guard.stdin.flush()
        until(started.exists)
        if stopped:
            guard.stdin.close()
        guard.wait(DEADLINE_S)
    assert not scratch.exists() and token.exists() is not stopped


FAMILY = """
import os, subprocess, sys, time
if sys.argv[1] == "parent":
    subprocess.Popen([sys.executable, __file__, "child", sys.argv[2]], start_new_session=True)
    signal_ignored = __import__("signal").signal(15, __import__("signal").SIG_IGN)
open(os.path.join(sys.argv[2], sys.argv[1]), "w").write(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.parametrize("ending", ["pipe", "term", "kill-parent"])
def test_a_guarded_command_leaves_nothing(tmp_path: Path, ending: str) -> None:
    """A command that ignores SIGTERM, with a child in a session of its own."""
    script, folder, scratch = tmp_path / "family.py", tmp_path / "pids", tmp_path / "scratch"
    script.write_text(FAMILY)
    folder.mkdir()
    scratch.mkdir()
    command = [sys.executable, str(script), "parent", str(folder)]
    order = {"command": command, "grace_s": 0.3, "remove": [str(scratch)], "remove_if_stopped": []}
    holder = f"""
import json, subprocess, sys, time
guard = subprocess.Popen([sys.executable, "-m", "services.processes.guard"], stdin=subprocess.PIPE, start_new_session=True)
guard.stdin.write({json.dumps(order)!r}.encode() + b"\\n")
guard.stdin.flush()
print(guard.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        guard = int(process.stdout.readline())
        until(lambda: all((folder / name).exists() and (folder / name).read_text() for name in ("parent", "child")))
        pids = [int((folder / name).read_text()) for name in ("parent", "child")]
        if ending == "term":
            os.kill(guard, signal.SIGTERM)
        else:
            process.send_signal(signal.SIGKILL if ending == "kill-parent" else signal.SIGTERM)
        until(lambda: not any(alive(pid) for pid in pids) and not scratch.exists())
        process.kill()


def alive(pid: int) -> bool:
    try:
        return not re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return False
