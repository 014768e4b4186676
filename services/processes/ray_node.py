"""How a Ray node is started: `ray start` without what Lockstep does not use, and a program of its own for that.

Run as `python -m services.processes.ray_node start ...` it is the `ray` command as if grpc were not installed: then Ray
opens no port for Ray Client, which no option of Ray 2.60 prevents and which would be another way in.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Final

from services import limits
from services.processes.owners import free_port

OBJECT_STORE_BYTES: Final = 128 * limits.MIB


def ray_environment(token_file: Path) -> dict[str, str]:
    """The environment of every Ray process: a token always, no statistics.

    Ray would run workers at niceness 15. In a step each waits for the others, so that one which is put aside for anything
    else on its machine holds up all.
    """
    return {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "error",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_worker_niceness": "0",
    }


def start_command(folder: Path, cpus: int, node_ip: str, *arguments: str) -> list[str]:
    """The command of a node with so many CPUs; `folder` takes its sockets and logs, `node_ip` may be empty."""
    return [
        *(sys.executable, "-m", "services.processes.ray_node", "start", "--block", "--disable-usage-stats", *arguments),
        *((f"--node-ip-address={node_ip}",) if node_ip else ()),
        f"--num-cpus={cpus}",
        "--num-gpus=0",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={folder / 'ray'}",
        "--include-log-monitor=false",  # nobody reads workers' output through Ray
        *("--min-worker-port=0", "--max-worker-port=0"),  # else Ray takes 10002 to 19999 for itself
        f"--dashboard-agent-listen-port={free_port()}",  # a fixed one would keep two nodes off one machine
    ]


def head_command(folder: Path, cpus: int, node_ip: str, port: int) -> list[str]:
    """The command of the head; without dashboard, and without the autoscaler's monitor, since nodes come by themselves."""
    return start_command(folder, cpus, node_ip, "--head", f"--port={port}", "--include-dashboard=false", "--no-monitor")


if __name__ == "__main__":
    sys.modules["grpc"] = None  # type: ignore[assignment]  # an import of it fails, as if it were not installed
    runpy.run_module("ray.scripts.scripts", run_name="__main__", alter_sys=True)
